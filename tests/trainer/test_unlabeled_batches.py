"""Learning beside examples without labels: which of them, what is asked of them, and what it costs."""

import logging

import pytest
import runs
import torch
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model
from torch.nn import functional as F

from hf_rat import Regularization, parse
from hf_rat.trainer.unlabeled_batches import UnlabeledBatches

ROWS = [{"input_ids": [k], "label": 0, "labels": 1} for k in range(10)]


def numbers(batches, count):
    return [batches.next()["ids"] for _ in range(count)]


def batches(size=3, **settings):
    def collate(rows):
        assert all(row.keys() == {"input_ids"} for row in rows), "labels are left out"
        return {"ids": [row["input_ids"][0] for row in rows]}

    return UnlabeledBatches(ROWS, collate, size, **settings)


# -- which examples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_each_pass_holds_every_example_once_whoever_takes_it(processes):
    streams = [numbers(batches(2, process=k, processes=processes), 10) for k in range(processes)]
    taken = [number for step in zip(*streams, strict=True) for part in step for number in part]
    passes = [taken[start : start + 10] for start in range(0, len(taken), 10)]
    assert all(sorted(each) == list(range(10)) for each in passes)
    assert len({tuple(each) for each in passes}) == len(passes), "each pass has its own order"


def test_a_batch_depends_on_its_number_alone():
    straight = numbers(batches(), 9)
    later = batches()
    later.made = 5
    assert numbers(later, 4) == straight[5:]
    assert later.made == 9
    assert numbers(batches(seed=1), 9) != straight


def test_a_batch_may_be_larger_than_the_data():
    (ids,) = numbers(batches(25), 1)
    assert sorted(ids[:10]) == sorted(ids[10:20]) == list(range(10))
    assert len(ids) == 25


@pytest.mark.parametrize(("dataset", "match"), [([], "is empty"), ((x for x in ROWS), "no length.*generator")])
def test_examples_that_cannot_be_taken_by_number(dataset, match):
    with pytest.raises(ValueError, match=match) as error:
        UnlabeledBatches(dataset, list, 2)
    assert "\n" not in str(error.value)


# -- what is asked of them -------------------------------------------------------------------------------------------


def beside(size=3):
    return {**tiny_batch(size, 5, kind="none", seed=9)}


def backward(expression, model, how="backward", **settings):
    regularization = Regularization(parse(expression), model)
    torch.manual_seed(4)
    if how == "backward":
        return regularization.backward(tiny_batch(), **settings)
    losses = regularization.losses(tiny_batch(), **settings)
    torch.stack(list(losses.values())).sum().backward()
    return {name: value.detach() for name, value in losses.items()}


def vat_by_hand(model, batch):
    """KL(sg p(x) || p(x + r)) for vat(epsilon=0.5, start=0.1), without dropout."""
    mask, embedded = batch["attention_mask"], model.get_input_embeddings()(batch["input_ids"])

    def logits(move):
        return model(inputs_embeds=embedded + move, attention_mask=mask).logits

    def kl(q):
        return F.kl_div(q.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="batchmean")

    clean = logits(0).detach()
    d = torch.randn(embedded.shape) * mask.unsqueeze(-1)
    start = (0.1 * d / d.flatten(1).norm(dim=1).view(-1, 1, 1)).requires_grad_()
    (d,) = torch.autograd.grad(kl(logits(start)), start, retain_graph=True)
    return kl(logits(0.5 * d / d.flatten(1).norm(dim=1).view(-1, 1, 1)))


def fraternal_by_hand(model, batch):
    one, two = model(**{name: value.repeat(2, 1) for name, value in batch.items()}).logits.chunk(2)
    return F.mse_loss(one, two)


@pytest.mark.filterwarnings("ignore:.*has no dropout")
@pytest.mark.parametrize(
    ("expression", "dropout", "name", "by_hand"),
    [
        ("0.5 * vat(epsilon=0.5, alpha=3) + fgm", 0.0, "unlabeled_smoothness", lambda m, b: 1.5 * vat_by_hand(m, b)),
        ("fraternal(alpha=2)", 0.1, "unlabeled_consistency", lambda m, b: 2 * fraternal_by_hand(m, b)),
    ],
)
def test_what_needs_no_labels_is_added_for_the_other_batch(expression, dropout, name, by_hand):
    ours, theirs = tiny_model(dropout=dropout), tiny_model(dropout=dropout)
    losses = backward(expression, ours, unlabeled={**beside(), "labels": torch.tensor([0, 0, 0])})
    labelled = backward(expression, theirs)  # leaves the generator where the other batch begins
    expected = by_hand(theirs, beside())
    expected.backward()
    assert losses.keys() == {*labelled, name}
    for part, value in {**labelled, name: expected}.items():
        assert float(losses[part]) == pytest.approx(value.item(), rel=1e-4)
        assert value > 0
    assert_same_gradients(gradients(ours), gradients(theirs))


@pytest.mark.parametrize(
    ("expression", "names", "forwards", "backwards", "slopes"),
    [
        ("vat", {"smoothness"}, 3, 1, 1),
        ("vat(steps=3) + rat + freelb", {"smoothness"}, 5, 1, 3),
        ("rdrop(passes=3)", {"consistency"}, 3, 3, 0),
        ("fraternal + vat", {"consistency", "smoothness"}, 4, 3, 1),
        ("pi_model", {"smoothness"}, 2, 2, 0),
        ("expectation_linear", {"smoothness"}, 2, 2, 0),
        ("r3f(epsilon=0.1)", {"smoothness"}, 2, 2, 0),
        ("smart(epsilon=0.1, step=0.1, start=0.1)", {"smoothness", "proximal"}, 4, 2, 1),
        ("adversarial_dropout(rate=0.2)", {"smoothness"}, 3, 2, 1),
        ("adversarial_dropout(rate=0.2, fixed=True)", {"smoothness"}, 3, 1, 1),
        ("adversarial_dropout(rate=0.2, base='random', steps=2)", {"noisy_smoothness"}, 4, 2, 2),
    ],
)
def test_names_and_costs_and_streaming(expression, names, forwards, backwards, slopes):
    one, other = tiny_model(dropout=0.1), tiny_model(dropout=0.1)
    runs_seen = []

    def see(module, args, kwargs, output):
        if torch.is_grad_enabled() or module is not one:  # not where the first batch is looked at
            runs_seen.append(kwargs["input_ids"].shape[0])

    one.register_forward_hook(see, with_kwargs=True)
    labelled = set(backward(expression, tiny_model(dropout=0.1)))
    regularization = Regularization(parse(expression), one)
    cost = regularization.cost(unlabeled=True)
    assert (cost.forwards, cost.backwards, cost.slopes) == (forwards, backwards, slopes)
    regularization.close()
    losses = backward(expression, one, unlabeled=beside(5))
    assert sum(size // 5 for size in runs_seen if size % 5 == 0) == forwards  # a teacher is a copy, hook and all
    assert losses.keys() == labelled | {f"unlabeled_{name}" for name in names}
    whole = backward(expression, other, "losses", unlabeled=beside(5))
    assert whole.keys() == losses.keys()
    for name, value in whole.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-7)
    assert_same_gradients(gradients(one), gradients(other))


def test_several_labels_stay_several_without_labels():
    """The kind of task is read off the labelled batch where the configuration does not say it."""
    model = tiny_model(dropout=0.3)
    batch = tiny_batch(kind="multi")
    regularization = Regularization(parse("rdrop(alpha=2)"), model)
    torch.manual_seed(4)
    losses = regularization.backward(batch, unlabeled=beside())
    torch.manual_seed(4)
    regularization.backward(batch)
    z, w = model(**{name: value.repeat(2, 1) for name, value in beside().items()}).logits.chunk(2)
    p, q = torch.distributions.Bernoulli(logits=z), torch.distributions.Bernoulli(logits=w)
    both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    assert float(losses["unlabeled_consistency"]) == pytest.approx(both.mean().item(), rel=1e-4)


@pytest.mark.parametrize("expression", ["plain", "fgm", "rat", "pgd + freelb", "0 * vat + neftune"])
def test_a_regularizer_that_cannot_use_them_is_refused(expression):
    with pytest.raises(ValueError, match=r"asks nothing of examples without labels; add one of .*vat") as error:
        runs.trainer(expression, options={"unlabeled_dataset": runs.examples(8)})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="asks nothing of examples without labels"):
        Regularization(parse(expression), tiny_model(dropout=0.1)).backward(tiny_batch(), unlabeled=beside())


# -- the trainer -----------------------------------------------------------------------------------------------------


def trainer(expression, folder=None, **settings):
    saving = {} if folder is None else {"save_strategy": "steps", "save_steps": 3, "output_dir": str(folder)}
    options = {"unlabeled_dataset": runs.examples(14, seed=1), "data_collator": runs.collate_any}
    return runs.trainer(expression, options=options, **{"max_steps": 6, "count": 20, **saving, **settings})


def test_the_trainer_takes_one_batch_beside_each(caplog):
    with caplog.at_level(logging.INFO, logger="hf_rat.trainer.trainer"):
        one = trainer("vat(epsilon=0.5, begin=2) + fgm", gradient_accumulation_steps=2)
        one.train()
    # vat: 3 forward, 2 backward; fgm: 1 and 1 more; the other batch: 3 and 1.
    assert "2 forward and 2 backward passes in 2 of 6 steps, 7 forward and 4 backward passes" in caplog.text
    assert "backward passes and 2 for slopes in 4 of 6 steps" in caplog.text
    logs = runs.ran(one).logs
    assert all(("loss_unlabeled_smoothness" in log) == (step >= 2) for step, log in enumerate(logs))
    assert all(log["loss_unlabeled_smoothness"] > 0 for log in logs[2:])
    for log in logs:
        assert log["loss"] == pytest.approx(sum(v for k, v in log.items() if k.startswith("loss_")), abs=1e-3)
    # 5 micro-batches in an epoch, of which two and a short one make three steps.
    assert one._unlabeled.made == 10


def test_resuming_continues_with_the_next_unlabeled_batch(tmp_path):
    expression = "vat(epsilon=0.5) + rdrop"
    straight = trainer(expression, tmp_path / "straight")
    straight.train()
    resumed = trainer(expression, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    runs.assert_same_weights(runs.ran(resumed).weights, runs.ran(straight).weights)
    assert runs.ran(resumed).logs == runs.ran(straight).logs
    straight.train()
    assert straight._unlabeled.made == 6, "a run begins with the first batch"

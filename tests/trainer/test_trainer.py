"""The trainer: what it adds to the stock one, what it leaves alone, and how it is built."""

import math
import tempfile

import keyed
import pytest
import runs
import tiny
import torch
from torch.nn import functional as F
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from hf_rat import RegularizationMixin, RegularizedTrainer, plain, rat, rdrop

REGULARIZED = [expression for name, expression in runs.SETTINGS.items() if name != "plain"]
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1.0}
SEQUENTIAL = {"train_sampling_strategy": "sequential"}


class Corrected(Trainer):
    """The stock Trainer without its mis-scaling of classification losses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


def without_dropout():
    return tiny.tiny_model(dropout=0.0, _attn_implementation="eager")


# -- plain, and the stock Trainer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"label_smoothing_factor": 0.1}, {"bf16": True}], ids=str)
def test_plain_is_the_corrected_trainer_bit_for_bit(settings):
    settings = {"count": 22, "gradient_accumulation_steps": 2, "num_train_epochs": 2, **ADAM, **settings}
    ours, theirs = runs.run("plain", **settings), runs.run("plain", Corrected, **settings)
    assert ours.logs == theirs.logs
    assert len(ours.logs) == 6
    runs.assert_same_weights(ours.weights, theirs.weights)


def test_the_stock_trainer_scales_gradients_with_the_accumulation_and_ours_does_not():
    whole = {"count": 16, "per_device_train_batch_size": 16}
    cut = {"count": 16, "gradient_accumulation_steps": 4}

    def norm(kind, settings):
        return runs.run("plain", kind, model=without_dropout(), **settings).logs[0]["grad_norm"]

    assert norm(Trainer, cut) == pytest.approx(4 * norm(Trainer, whole), rel=1e-5)
    assert norm(RegularizedTrainer, cut) == pytest.approx(norm(RegularizedTrainer, whole), rel=1e-5)
    assert norm(RegularizedTrainer, whole) == pytest.approx(norm(Trainer, whole), rel=1e-6)


# -- against training loops written by hand ---------------------------------------------------------------------------


def hand_fgm(model, batch, epsilon, loss=None):
    """(clean loss, adversarial loss) of FGM; `loss` is a function of logits and labels."""
    labels = batch["labels"]
    loss = loss or F.cross_entropy
    words = model.get_input_embeddings()(batch["input_ids"])
    clean = loss(model(inputs_embeds=words, attention_mask=batch["attention_mask"]).logits, labels)
    (slope,) = torch.autograd.grad(clean, words, retain_graph=True)
    move = epsilon * slope / slope.square().sum((1, 2), keepdim=True).sqrt()
    adversarial = loss(model(inputs_embeds=words + move, attention_mask=batch["attention_mask"]).logits, labels)
    return clean, adversarial


def test_short_windows_and_small_last_batches_are_means_of_means():
    """19 examples in micro-batches of 4, two per step: 4+4, 4+4, and 3 alone; the first epoch of a loop by hand."""
    ours = runs.run("fgm(epsilon=0.5)", model=without_dropout(), count=19, gradient_accumulation_steps=2, **SEQUENTIAL)
    model, rows = without_dropout(), runs.examples(19)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for window in ([0, 4], [8, 12], [16]):
        optimizer.zero_grad()
        total = sum(sum(hand_fgm(model, runs.collate(rows[first : first + 4]), 0.5)) for first in window) / len(window)
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert [log["loss"] for log in ours.logs] == pytest.approx(losses, rel=1e-5)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(ours.weights[name], weight, rtol=1e-4, atol=1e-6)


def test_a_smaller_last_micro_batch_in_a_window():
    ours = runs.run("fgm(epsilon=0.5)", model=without_dropout(), count=6, gradient_accumulation_steps=2, **SEQUENTIAL)
    model, rows = without_dropout(), runs.examples(6)
    halves = [sum(hand_fgm(model, runs.collate(part), 0.5)) for part in (rows[:4], rows[4:])]
    assert ours.logs[0]["loss"] == pytest.approx((sum(halves) / 2).item(), rel=1e-5)


WEIGHTS = torch.tensor([0.2, 1.0, 3.0])


def smoothed(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.2)


def weighted(logits, labels):
    return F.cross_entropy(logits, labels, weight=WEIGHTS, reduction="sum") / len(labels)


@pytest.mark.parametrize(
    ("loss", "settings", "options"),
    [
        (smoothed, {"label_smoothing_factor": 0.2}, {}),
        (
            weighted,
            {},
            {
                "compute_loss_func": lambda outputs, labels, num_items_in_batch: (
                    F.cross_entropy(outputs.logits, labels, weight=WEIGHTS, reduction="sum") / num_items_in_batch
                )
            },
        ),
    ],
    ids=["label smoothing", "class weights"],
)
def test_every_pass_has_the_task_loss_that_was_asked_for(loss, settings, options):
    ours = runs.run("fgm(epsilon=0.5)", model=without_dropout(), count=4, options=options, **settings)
    model = without_dropout()
    clean, adversarial = hand_fgm(model, runs.collate(runs.examples(4)), 0.5, loss)
    (clean + adversarial).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
    assert ours.logs[0]["loss_task"] == pytest.approx(clean.item(), rel=1e-5)
    assert ours.logs[0]["loss_adversarial_task"] == pytest.approx(adversarial.item(), rel=1e-5)
    assert ours.logs[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert loss(torch.eye(3), torch.arange(3)) != F.cross_entropy(torch.eye(3), torch.arange(3))


@pytest.mark.parametrize(
    ("expression", "passes"), [("plain", [4]), ("fgm", [4, 4]), ("rdrop", [8]), ("rat(passes=3)", [4, 12])]
)
def test_a_loss_function_gets_the_label_count_of_its_own_pass(expression, passes):
    seen = []

    def loss_function(outputs, labels, num_items_in_batch):
        if torch.is_grad_enabled():  # not where the first batch is looked at
            seen.append((outputs.logits.shape[0], labels.shape[0], int(num_items_in_batch)))
        return F.cross_entropy(outputs.logits, labels)

    options = {"compute_loss_func": loss_function}
    runs.run(expression, count=16, gradient_accumulation_steps=2, options=options)
    assert seen == [(count, count, count) for count in passes] * 4


# -- what is logged ---------------------------------------------------------------------------------------------------


def test_components_of_the_whole_run_are_the_means_of_its_steps():
    one = runs.trainer("rat(epsilon=0.5)", max_steps=5, logging_steps=2)
    metrics = one.train().metrics
    every = runs.trainer("rat(epsilon=0.5)", max_steps=5, logging_steps=1)
    every.train()
    steps = [log for log in every.state.log_history if "loss" in log]
    assert len(steps) == 5
    names = [name for name in steps[0] if name.startswith("loss_")]
    assert {name for name in metrics if name.startswith("train_loss_")} == {f"train_{name}" for name in names}
    for name in names:
        assert metrics[f"train_{name}"] == pytest.approx(sum(step[name] for step in steps) / 5, rel=1e-5)
    assert sum(metrics[f"train_{name}"] for name in names) == pytest.approx(metrics["train_loss"], rel=1e-5)


@pytest.mark.parametrize("expression", [*REGULARIZED, *runs.COMPOSED])
def test_components_sum_to_the_loss_and_are_averaged_as_it_is(expression):
    settings = {"count": 20, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    every, third = runs.run(expression, **settings), runs.run(expression, logging_steps=3, **settings)
    assert (len(every.logs), len(third.logs)) == (6, 2)
    for log in every.logs + third.logs:
        components = [value for name, value in log.items() if name.startswith("loss_")]
        assert sum(components) == pytest.approx(log["loss"], rel=1e-6)
        assert log["nonfinite_steps"] == 0
    for block, log in enumerate(third.logs):
        for name in (name for name in log if name.startswith("loss")):
            steps = [step.get(name, 0.0) for step in every.logs[3 * block : 3 * block + 3]]
            assert log[name] == pytest.approx(sum(steps) / 3, rel=1e-5)


def test_plain_logs_what_the_stock_trainer_logs():
    assert set(runs.run("plain").logs[0]) == {"loss", "grad_norm"}


def test_schedules_count_optimizer_steps():
    """begin=2, warmup=1: two plain steps, one at half strength, then the whole; two micro-batches make a step."""
    settings = {"count": 32, "gradient_accumulation_steps": 2}
    with keyed.noise():
        late = runs.run("rdrop(begin=2, warmup=1)", keyed.KeyedTrainer, **settings).logs
        plainly = runs.run("plain", keyed.KeyedTrainer, **settings).logs
        half = runs.run("0.5 * rdrop(begin=2)", keyed.KeyedTrainer, **settings).logs
        full = runs.run("rdrop(begin=2)", keyed.KeyedTrainer, **settings).logs
    for step in (0, 1):
        assert set(late[step]) == {"loss", "loss_task", "grad_norm", "nonfinite_steps"}
        assert late[step]["loss"] == pytest.approx(plainly[step]["loss"], rel=1e-6)
        assert late[step]["grad_norm"] == pytest.approx(plainly[step]["grad_norm"], rel=1e-5)
    runs.assert_same_logs(late[2:3], half[2:3])
    assert late[2]["loss_consistency"] == pytest.approx(full[2]["loss_consistency"] / 2, rel=1e-5)
    assert late[3]["loss_consistency"] > 0


# -- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compute_loss_func": lambda o, labels, num_items_in_batch: F.cross_entropy(o.logits, labels, weight=WEIGHTS)},
    ],
    ids=["the model's loss", "compute_loss_func"],
)
def test_evaluation_is_the_stock_one_and_runs_each_batch_once(options):
    theirs = runs.trainer("plain", Corrected, options={**options, "eval_dataset": runs.examples(10, seed=5)})
    ours = runs.trainer("rat", options={**options, "eval_dataset": runs.examples(10, seed=5)})
    passes = []
    ours.model.classifier.register_forward_hook(lambda *_: passes.append(1))
    mine, stock = ours.evaluate(), theirs.evaluate()
    assert mine.keys() == stock.keys()
    assert mine["eval_loss"] == stock["eval_loss"]
    assert len(passes) == 2, "10 examples in batches of 8"
    assert torch.equal(
        torch.tensor(ours.predict(runs.examples(10)).predictions),
        torch.tensor(theirs.predict(runs.examples(10)).predictions),
    )


def test_evaluating_while_training_changes_nothing():
    options = {"eval_dataset": runs.examples(10, seed=5)}
    with keyed.noise():  # evaluation draws from torch's generator, also in the stock Trainer
        without = runs.run("rat", keyed.KeyedTrainer, count=16)
        one = runs.trainer("rat", keyed.KeyedTrainer, count=16, options=options, eval_strategy="steps", eval_steps=1)
        one.train()
    assert runs.ran(one).logs == without.logs
    runs.assert_same_weights(runs.ran(one).weights, without.weights)
    assert sum("eval_loss" in log for log in one.state.log_history) == 4


# -- other ways to build it -------------------------------------------------------------------------------------------


def bare_arguments(kind=TrainingArguments, **settings):
    return kind(output_dir=tempfile.gettempdir(), use_cpu=True, report_to="none", max_steps=2, **settings)


def test_plain_training_arguments_and_a_regularizer():
    one = RegularizedTrainer(
        tiny.tiny_model(dropout=0.1),
        bare_arguments(logging_steps=1, save_strategy="no"),
        train_dataset=runs.examples(16),
        data_collator=runs.collate,
        regularizer=rdrop(alpha=0.5),
    )
    one.train()
    assert one.regularizer == rdrop(alpha=0.5)
    assert "loss_consistency" in one.state.log_history[0]


def test_without_a_regularizer_plain_training_arguments_mean_plain():
    one = RegularizedTrainer(without_dropout(), bare_arguments(), train_dataset=[])
    assert one.regularizer == plain()


def test_the_mixin_goes_in_front_of_other_trainers():
    class Seq2Seq(RegularizationMixin, Seq2SeqTrainer):
        pass

    model = tiny.tiny_model("t5", dropout=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = Seq2Seq(
        model=model,
        args=bare_arguments(Seq2SeqTrainingArguments, logging_steps=1, save_strategy="no"),
        train_dataset=runs.examples(16),
        eval_dataset=runs.examples(8),
        data_collator=runs.collate,
        regularizer=rat(epsilon=0.5),
    )
    one.train()
    assert {"loss_task", "loss_adversarial_task", "loss_adversarial_consistency"} <= set(one.state.log_history[0])
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert math.isfinite(one.evaluate()["eval_loss"])

"""A loss of the user's own, written where people write it, against the equation in plain PyTorch."""

import types

import pytest
import runs
import tiny
import torch
from test_trainer import hand_fgm
from tiny_tasks import task_model
from torch import nn
from torch.nn import functional as F
from transformers import Trainer

from hf_rat import RegularizationMixin, RegularizedTrainer, fgm, plain, rat, rdrop

CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0])
SILENT = {"train_sampling_strategy": "sequential"}


def class_weighted(logits, labels):
    return F.cross_entropy(logits, labels, weight=CLASS_WEIGHTS)


def focal(logits, labels):
    right = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - (-right).exp()).square() * right).mean()


def twice(logits, labels):
    return 2 * F.cross_entropy(logits, labels)


def of_labels(loss):
    """compute_loss as most people write it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        value = loss(outputs.logits, labels)
        return (value, outputs) if return_outputs else value

    return compute_loss


def of_an_old_transformers(self, model, inputs, return_outputs=False):
    return of_labels(focal)(self, model, inputs, return_outputs)


def without_outputs(self, model, inputs, return_outputs=False, **kwargs):
    return of_labels(focal)(self, model, inputs, False)


def without_the_argument(self, model, inputs):
    return of_labels(focal)(self, model, inputs, False)


def by_the_count(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    labels = inputs["labels"]
    outputs = model(**inputs)
    value = F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
    return (2 * value, outputs) if return_outputs else 2 * value


def from_above(with_outputs):
    class Doubled(RegularizedTrainer):
        """Twice what the Trainer computes."""

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            if not (return_outputs or with_outputs):
                return 2 * super().compute_loss(model, inputs, **kwargs)
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            return (2 * loss, outputs) if return_outputs else 2 * loss

    return Doubled


def in_front(compute_loss):
    return type("InFront", (RegularizedTrainer,), {"compute_loss": compute_loss})


def behind(compute_loss):
    return type("Behind", (RegularizationMixin, type("Theirs", (Trainer,), {"compute_loss": compute_loss})), {})


def below(compute_loss):
    return type("Below", (in_front(of_labels(lambda logits, labels: logits.sum())),), {"compute_loss": compute_loss})


def subclassed(compute_loss):
    return type("Subclassed", (in_front(compute_loss),), {})


def between(compute_loss):
    return type("Between", (type("Weighted", (), {"compute_loss": compute_loss}), RegularizedTrainer), {})


def still_a_trainer(compute_loss):
    theirs = type("Theirs", (Trainer,), {"compute_loss": compute_loss})
    return type("Both", (theirs, RegularizedTrainer), {})


WAYS = [in_front, behind, below, subclassed, between, still_a_trainer]


def trainer(kind, regularizer, **options):
    model = tiny.tiny_model(dropout=0.0, _attn_implementation="eager")
    return runs.trainer(kind=kind, model=model, count=4, options={"regularizer": regularizer, **options}, **SILENT)


def assert_is_fgm_of(loss, one, epsilon=0.5):
    one.train()
    model = tiny.tiny_model(dropout=0.0, _attn_implementation="eager")
    clean, adversarial = hand_fgm(model, runs.collate(runs.examples(4)), epsilon, loss)
    (clean + adversarial).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    (log,) = runs.ran(one).logs
    assert log["loss_task"] == pytest.approx(clean.item(), rel=1e-5)
    assert log["loss_adversarial_task"] == pytest.approx(adversarial.item(), rel=1e-5)
    assert adversarial > clean + 1e-3
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(one.model.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", [class_weighted, focal])
def test_the_regularizer_works_around_a_loss_wherever_it_stands(way, loss):
    assert_is_fgm_of(loss, trainer(way(of_labels(loss)), fgm(epsilon=0.5)))


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        (in_front(of_an_old_transformers), focal),
        (in_front(without_outputs), focal),
        (in_front(without_the_argument), focal),
        (in_front(by_the_count), twice),
        (from_above(with_outputs=False), twice),
        (from_above(with_outputs=True), twice),
    ],
    ids=["old", "without outputs", "without the argument", "by the count", "from above", "from above, with outputs"],
)
def test_every_way_of_writing_it_is_understood(kind, loss):
    assert_is_fgm_of(loss, trainer(kind, fgm(epsilon=0.5)))


def test_a_loss_assigned_to_the_instance_or_to_the_class_is_the_task_loss():
    one = trainer(RegularizedTrainer, fgm(epsilon=0.5))
    one.compute_loss = types.MethodType(of_labels(focal), one)
    assert_is_fgm_of(focal, one)
    around = trainer(RegularizedTrainer, fgm(epsilon=0.5))
    before = around.compute_loss
    around.compute_loss = lambda model, inputs, **kwargs: 2 * before(model, inputs)
    assert_is_fgm_of(twice, around)
    kind = in_front(of_labels(twice))
    late = trainer(kind, fgm(epsilon=0.5))
    kind.compute_loss = of_labels(focal)
    assert_is_fgm_of(focal, late)


def test_a_loss_put_there_for_a_while_leaves_what_was_there(monkeypatch):
    one = trainer(RegularizedTrainer, fgm(epsilon=0.5))
    with monkeypatch.context() as patch:
        patch.setattr(one, "compute_loss", None)
    assert_is_fgm_of(F.cross_entropy, one)


def test_a_method_that_calls_the_loss_function_of_the_trainer():
    one = trainer(
        from_above(with_outputs=True),
        fgm(epsilon=0.5),
        compute_loss_func=lambda outputs, labels, num_items_in_batch: (
            F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        ),
    )
    assert_is_fgm_of(twice, one)


def two_runs(self, model, inputs, return_outputs=False, **kwargs):
    """As SimCSE and home-made R-Drops do: the model runs twice in one loss."""
    labels = inputs["labels"]
    outputs, again = model(**inputs), model(**inputs)
    loss = (focal(outputs.logits, labels) + focal(again.logits, labels)) / 2
    return (loss, outputs) if return_outputs else loss


def two_runs_without_outputs(self, model, inputs, return_outputs=False, **kwargs):
    return two_runs(self, model, inputs, False)


def by_hand_rdrop(loss, calls):
    """Means over two dropout passes of `loss`, and half the symmetric KL, under known masks of the last layer."""
    masks = Masks(tiny.tiny_model())
    batch = runs.collate(runs.examples(4))
    labels, logits = batch.pop("labels"), []
    for _ in range(2):
        logits += [masks.model(**batch).logits for _ in range(calls)][:1]
    p, q = (z.log_softmax(-1) for z in logits)
    return loss(logits[0], labels), loss(logits[1], labels), ((p.exp() - q.exp()) * (p - q)).sum(-1).mean() / 2


class Masks:
    """A model whose classifier's input loses units 0 to 3 of the first copy of a batch, 4 to 7 of the second."""

    def __init__(self, model):
        self.model, self.calls = model, 0
        model.dropout = self.layer = _Halved()


class _Halved(nn.Dropout):
    def __init__(self):
        super().__init__(0.1)
        self.calls = 0

    def forward(self, x):
        mask = torch.ones(2, x.shape[-1])
        mask[0, :4] = mask[1, 4:8] = 0
        copies = x.shape[0] // 4
        if copies == 2:
            return x * mask.repeat_interleave(4, 0)
        self.calls += 1
        return x * mask[(self.calls - 1) % 2]


@pytest.mark.parametrize("compute_loss", [of_labels(focal), without_outputs, without_the_argument])
def test_predictions_are_compared_under_a_loss_in_a_method(compute_loss):
    model = Masks(tiny.tiny_model()).model
    one = runs.trainer(
        kind=in_front(compute_loss), model=model, count=4, options={"regularizer": rdrop(alpha=0.7)}, **SILENT
    )
    one.train()
    first, second, apart = by_hand_rdrop(focal, 1)
    (log,) = runs.ran(one).logs
    assert log["loss_task"] == pytest.approx(((first + second) / 2).item(), rel=1e-5)
    assert log["loss_consistency"] == pytest.approx((0.7 * apart).item(), rel=1e-4)
    assert apart > 1e-3


def test_which_outputs_are_meant_is_never_guessed():
    trainer(in_front(two_runs), rdrop()).train()
    with pytest.raises(RuntimeError, match="runs more often in a pass"):  # of which only the first would be perturbed
        trainer(in_front(two_runs_without_outputs), fgm(epsilon=0.5)).train()
    with pytest.raises(ValueError, match=r"after 2 calls of the model.*\(loss, outputs\)") as error:
        trainer(in_front(two_runs_without_outputs), rdrop()).train()
    assert "\n" not in str(error.value)

    def a_tuple_doubled(self, model, inputs, return_outputs=False, **kwargs):
        return 2 * of_labels(focal)(self, model, inputs, return_outputs)

    with pytest.raises(ValueError, match="returned 4 values") as error:
        trainer(in_front(a_tuple_doubled), rat(epsilon=0.5)).train()
    assert "\n" not in str(error.value)


def test_evaluation_is_the_loss_of_the_method_once():
    one = trainer(in_front(of_labels(focal)), rat(epsilon=0.5), eval_dataset=runs.examples(4))
    batch = runs.collate(runs.examples(4))
    expected = focal(one.model.eval()(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
    passes = []
    one.model.classifier.register_forward_hook(lambda *_: passes.append(1))
    assert one.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert len(passes) == 1


def test_a_trainer_in_front_of_the_mixin_is_refused():
    with pytest.raises(TypeError, match=r"class Wrong\(RegularizationMixin, Trainer\)$") as error:
        type("Wrong", (Trainer, RegularizationMixin), {})
    assert "\n" not in str(error.value)


# -- steps outside of train() ----------------------------------------------------------------------------------------


def test_a_step_without_train():
    for regularizer, loss in ((plain(), 0), (fgm(epsilon=0.5), 1)):
        one = trainer(RegularizedTrainer, regularizer)
        batch = runs.collate(runs.examples(4))
        parts = hand_fgm(tiny.tiny_model(dropout=0.0, _attn_implementation="eager"), batch, 0.5)
        expected = sum(parts[: 1 + loss]).item()
        assert one.training_step(one.model, batch).item() == pytest.approx(expected, rel=1e-5)
        assert one.model.classifier.weight.grad.any()
        one.model.train()
        assert one.compute_loss(one.model, batch).item() == pytest.approx(expected, rel=1e-5)
        one.train()
        assert one.training_step(one.model, batch).isfinite()


def test_plain_gives_its_outputs_in_training():
    for kind in (RegularizedTrainer, in_front(of_labels(F.cross_entropy))):
        one, batch = trainer(kind, plain()), runs.collate(runs.examples(4))
        loss, outputs = one.compute_loss(one.model.train(), dict(batch), return_outputs=True)
        assert loss.item() == pytest.approx(F.cross_entropy(outputs.logits, batch["labels"]).item(), rel=1e-6)
    one = trainer(RegularizedTrainer, rat(epsilon=0.5))
    with pytest.raises(ValueError, match="return_outputs=True") as error:
        one.compute_loss(one.model.train(), batch, return_outputs=True)
    assert "\n" not in str(error.value)


def test_a_step_and_a_prediction_have_the_same_loss():
    """After transformers' own test_train_and_predict_loss_parity."""

    def loss_function(outputs, labels, num_items_in_batch=None):
        loss = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    model = task_model("causal_lm_llama")
    ids = torch.randint(tiny.FIRST, tiny.VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(0))
    ids[2, 6:] = ids[3, 4:] = 0
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100)}
    count = int((batch["labels"][:, 1:] != -100).sum())
    for kind in (Trainer, RegularizedTrainer):
        one = kind(model, runs.arguments(), compute_loss_func=loss_function)
        trained = one.training_step(model, dict(batch), count)
        predicted = one.prediction_step(model, dict(batch), prediction_loss_only=True)[0]
        torch.testing.assert_close(trained, predicted)

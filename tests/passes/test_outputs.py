"""Models of other people: outputs as tuples, dicts and objects, labels of any name, against the equation by hand."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import runs
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rat import Regularization, RegularizedTrainer, fgm, parse
from hf_rat.passes.outputs import logits_of, loss_of

ONE_LOSS = ["plain", "fgm(epsilon=0.5)", "fgsm(epsilon=0.02)", "pgd(epsilon=0.5)", "freelb(start=0)", "neftune"]
COMPARED = ["rdrop", "rat(epsilon=0.5)", "vat(epsilon=0.5)"]


@dataclass
class Scores:
    loss: Tensor
    logits: Tensor


class Named(NamedTuple):
    loss: Tensor
    logits: Tensor
    features: Tensor


READABLE = {
    "tuple": lambda loss, logits, features: (loss, logits),
    "tuple with what is no tensor": lambda loss, logits, features: (loss, logits, None, (features, features)),
    "list": lambda loss, logits, features: [loss, logits],
    "named tuple": lambda loss, logits, features: Named(loss, logits, features),
    "dict": lambda loss, logits, features: {"features": features, "logits": logits, "loss": loss},
    "object": lambda loss, logits, features: Scores(loss, logits),
}
UNREADABLE = {
    "the loss alone": lambda loss, logits, features: (loss,),
    "a number": lambda loss, logits, features: loss,
    "two tensors": lambda loss, logits, features: (loss, features, logits),
    "a dict of other names": lambda loss, logits, features: {"loss": loss, "probabilities": logits.softmax(-1)},
    "the best class": lambda loss, logits, features: (loss, logits.argmax(-1)),
}
NOT_BY_THE_STOCK_TRAINER = ("object", "a number")


class TheirModel(nn.Module):
    def __init__(self, returns, label="labels"):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.output = nn.Embedding(tiny.VOCABULARY, 8), nn.Linear(8, 3)
        self.dropout, self.returns, self.label = nn.Dropout(0.3), returns, label

    def get_input_embeddings(self):
        return self.table

    def features(self, words):
        return self.dropout(torch.tanh(words).mean(1))

    def forward(self, input_ids, attention_mask=None, labels=None, targets=None):
        features = self.features(self.table(input_ids))
        logits = self.output(features)
        return self.returns(
            F.cross_entropy(logits, {"labels": labels, "targets": targets}[self.label]), logits, features
        )


def by_hand_fgm(epsilon=0.5):
    model, batch = TheirModel(None).eval(), runs.collate(runs.examples(4))
    words = model.table(batch["input_ids"])
    clean = F.cross_entropy(model.output(model.features(words)), batch["labels"])
    (slope,) = torch.autograd.grad(clean, words)
    move = epsilon * slope / slope.square().sum((1, 2), keepdim=True).sqrt()
    return clean.item(), F.cross_entropy(model.output(model.features(words + move)), batch["labels"]).item()


def trainer(model, expression, label="labels", **settings):
    def collate(rows):
        batch = runs.collate(rows)
        return {label: batch.pop("labels"), **batch}

    return runs.trainer(expression, model=model, count=4, options={"data_collator": collate}, **settings)


@pytest.mark.parametrize("how", [*READABLE, *UNREADABLE])
def test_a_task_loss_is_all_that_fgm_needs(how):
    expected = by_hand_fgm()
    model = TheirModel({**READABLE, **UNREADABLE}[how])
    model.dropout.p = 0.0
    named = Regularization(fgm(epsilon=0.5), model).backward(runs.collate(runs.examples(4)))
    assert [named["task"].item(), named["adversarial_task"].item()] == pytest.approx(expected, rel=1e-5)
    if how not in NOT_BY_THE_STOCK_TRAINER:
        one = trainer(model, "fgm(epsilon=0.5)")
        one.train()
        (log,) = runs.ran(one).logs
        assert [log["loss_task"], log["loss_adversarial_task"]] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("expression", ONE_LOSS)
def test_nothing_is_compared_where_a_recipe_compares_nothing(expression):
    trainer(TheirModel(UNREADABLE["two tensors"]), expression).train()
    Regularization(parse(expression), TheirModel(UNREADABLE["a number"])).backward(runs.collate(runs.examples(4)))


@pytest.mark.parametrize("how", READABLE)
@pytest.mark.parametrize("expression", COMPARED)
def test_logits_are_found_where_they_can_be_told(expression, how):
    losses = []
    for returns in (READABLE["dict"], READABLE[how]):
        torch.manual_seed(3)
        losses.append(Regularization(parse(expression), TheirModel(returns)).backward(runs.collate(runs.examples(4))))
    assert losses[0] == losses[1]
    assert losses[0].keys() & {"consistency", "adversarial_consistency", "smoothness"}
    if how not in NOT_BY_THE_STOCK_TRAINER:
        trainer(TheirModel(READABLE[how]), expression).train()


@pytest.mark.parametrize("how", UNREADABLE)
@pytest.mark.parametrize("expression", COMPARED)
def test_logits_are_never_guessed(expression, how):
    for step in (
        lambda: Regularization(parse(expression), TheirModel(UNREADABLE[how])).backward(
            runs.collate(runs.examples(4))
        ),
        lambda: trainer(TheirModel(UNREADABLE[how]), expression).train(),
    )[: 1 if how in NOT_BY_THE_STOCK_TRAINER else 2]:
        with pytest.raises(ValueError, match=r"TheirModel returned .*return a dict that names them") as error:
            step()
        assert "\n" not in str(error.value)


def test_what_is_read():
    logits = torch.ones(4, 3)
    assert loss_of((logits,)) is None
    assert loss_of({"logits": logits}) is None
    assert logits_of((logits,), "") is logits
    ends = logits_of({"start_logits": logits, "end_logits": 2 * logits}, "")
    assert ends.shape == (4, 2, 3)


@pytest.mark.parametrize("expression", ["rdrop", "rat(epsilon=0.5)"])
def test_a_model_of_transformers_without_return_dict(expression):
    losses = []
    for settings in ({}, {"return_dict": False}):
        model = tiny.tiny_model(dropout=0.1, **settings)
        torch.manual_seed(3)
        losses.append(Regularization(parse(expression), model).backward(tiny.tiny_batch()))
    assert losses[0] == losses[1]
    one = runs.trainer(expression, model=model, count=4, options={"eval_dataset": runs.examples(4)})
    one.train()
    assert one.evaluate()["eval_loss"] > 0


# -- labels of other names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", ["fgm(epsilon=0.5)", "rdrop", "rat(epsilon=0.5)"])
def test_labels_of_another_name(expression):
    logs = []
    for label in ("labels", "targets"):
        torch.manual_seed(3)
        one = trainer(TheirModel(READABLE["tuple"], label), expression, label, label_names=[label])
        torch.manual_seed(3)
        one.train()
        logs += runs.ran(one).logs
    runs.assert_same_logs(logs[1:], logs[:1])
    batch = runs.collate(runs.examples(4))
    batch["targets"] = batch.pop("labels")
    Regularization(parse(expression), TheirModel(READABLE["dict"], "targets")).backward(batch)


class TwoHeads(TheirModel):
    def __init__(self):
        super().__init__(None)
        self.other = nn.Linear(8, 2)

    def forward(self, input_ids, topic=None, tone=None):
        features = self.features(self.table(input_ids))
        first, second = self.output(features), self.other(features)
        return {"loss": F.cross_entropy(first, topic) + F.cross_entropy(second, tone), "a": first, "b": second}


def test_two_heads():
    def collate(rows):
        batch = runs.collate(rows)
        return {"input_ids": batch["input_ids"], "topic": batch["labels"], "tone": batch["labels"] % 2}

    model = TwoHeads()
    model.dropout.p = 0.0
    expected = model(**collate(runs.examples(4)))["loss"].item()
    how = {"options": {"data_collator": collate}, "label_names": ["topic", "tone"], "remove_unused_columns": False}
    one = runs.trainer("fgm(epsilon=0.5)", model=model, count=4, **how)
    one.train()
    (log,) = runs.ran(one).logs
    assert log["loss_task"] == pytest.approx(expected, rel=1e-5)
    assert log["loss_adversarial_task"] > log["loss_task"] + 1e-3


def test_no_label_at_all_is_one_line():
    batch = {name: value for name, value in tiny.tiny_batch().items() if name != "labels"}
    with pytest.raises(
        ValueError, match=r"no loss for a batch of input_ids, attention_mask: .* needs labels"
    ) as error:
        Regularization(fgm(), tiny.tiny_model()).backward(batch)
    assert "\n" not in str(error.value)


# -- models that are wrapped ------------------------------------------------------------------------------------------


class Around(nn.Module):
    """A module around an AutoModel, with a head of its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = tiny.tiny_model().bert, nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask, labels):
        logits = self.head(self.inner(input_ids, attention_mask).last_hidden_state[:, 0])
        return F.cross_entropy(logits, labels), logits


def test_a_module_without_input_embeddings_is_told_of_sites():
    with pytest.raises(ValueError, match=r'site="inner.embeddings.word_embeddings"$') as error:
        Regularization(fgm(), Around())
    assert "\n" not in str(error.value)
    named = Regularization(fgm(epsilon=0.5, site="inner.embeddings.word_embeddings"), Around()).backward(
        tiny.tiny_batch()
    )
    assert named["adversarial_task"] > named["task"] + 1e-3


def test_data_parallel_is_refused_in_a_loop():
    with pytest.raises(ValueError, match=r"DataParallel.*one process per GPU") as error:
        Regularization(fgm(), nn.DataParallel(tiny.tiny_model()))
    assert "\n" not in str(error.value)
    Regularization(parse("plain"), nn.DataParallel(tiny.tiny_model()))


def test_the_trainer_of_a_model_that_returns_a_tuple_evaluates_as_the_stock_one():
    one = trainer(TheirModel(READABLE["tuple"]), "rdrop")
    assert isinstance(one, RegularizedTrainer)
    assert one.predict(runs.examples(4)).predictions.shape == (4, 3)

"""Each pass has random numbers of its own, whatever draws them, and draws them again where that is asked."""

import logging
import os
import random
import warnings

import numpy as np
import pytest
import torch
from tiny import PAD, VOCABULARY, assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from hf_rat import Regularization, parse
from hf_rat.engine import regularization
from hf_rat.models import RNNConfig, RNNForSequenceClassification
from hf_rat.passes.dropout import RandomState
from hf_rat.regularizers import terms
from hf_rat.regularizers.divergences import mean_divergence

CPU = torch.device("cpu")
OWN = np.random.default_rng(5)


class Own(nn.Module):
    """A classifier that no list can know: `draw(units)` makes a 0/1 mask over its hidden units."""

    def __init__(self, draw, units=40):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding, self.hidden = nn.Embedding(VOCABULARY, 8), nn.Linear(8, units)
            self.output = nn.Linear(units, 3)
        self.register_buffer("runs", torch.zeros(()))
        self.seen, self.draw = 0, draw
        self.units = units

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = torch.tanh(self.hidden(self.embedding(input_ids)).mean(1))
        if self.training:
            self.runs += 1
            self.seen += 1
            hidden = self.draw(self, hidden)
        logits = 3 * self.output(hidden)
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


def masked(mask):
    return lambda self, hidden: hidden * torch.as_tensor(mask(self)).to(hidden.dtype)


# What is drawn once for the whole batch, by hands that nobody knows.
SHARED = {
    "torch": masked(lambda self: torch.rand(self.units) < 0.5),
    "numpy": masked(lambda self: np.random.random(self.units) < 0.5),
    "python": masked(lambda self: [random.random() < 0.5 for _ in range(self.units)]),
    "weight": lambda self, hidden: F.linear(hidden, F.dropout(torch.eye(self.units), 0.5)),
    "layer drop by torch": masked(lambda self: torch.rand([]) < 0.5),
    "layer drop by python": masked(lambda self: float(random.uniform(0, 1) < 0.5)),
    "depth": lambda self, hidden: hidden + torch.bernoulli(torch.tensor(0.5)) * hidden.cos(),
    "noise": lambda self, hidden: hidden + torch.randn(1, self.units),
    "order": lambda self, hidden: 0.5 * hidden + 0.5 * hidden[torch.randperm(len(hidden))],
    "autograd": lambda self, hidden: _OwnFunction.apply(hidden),
}
# What cannot be kept and put back.
UNREPEATABLE = {
    "a numpy generator": masked(lambda self: OWN.random(self.units) < 0.5),
    "a numpy generator that seldom draws": masked(lambda self: float(OWN.random() > 0.01)),
    "the operating system": masked(lambda self: [byte % 2 for byte in os.urandom(self.units)]),
    "a torch generator": masked(lambda self: torch.rand(self.units, generator=TORCH) < 0.5),
}
TORCH = torch.Generator().manual_seed(3)


class _OwnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mask = torch.empty(x.shape[1]).bernoulli_(0.5)
        return x * ctx.mask

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.mask


def awd(**settings):
    torch.manual_seed(0)
    config = {"vocab_size": VOCABULARY, "embedding_size": 8, "hidden_size": 12, "num_labels": 3, "pad_token_id": PAD}
    return RNNForSequenceClassification(RNNConfig(**config, classifier_dropout=0.0, **settings)).train()


def bart():
    torch.manual_seed(0)
    sizes = {
        f"{side}_{n}": v
        for side in ("encoder", "decoder")
        for n, v in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 16))
    }
    config = BartConfig(
        vocab_size=VOCABULARY, d_model=16, **sizes, dropout=0.0, attention_dropout=0.0, encoder_layerdrop=0.5,
        pad_token_id=PAD, eos_token_id=2, bos_token_id=3, decoder_start_token_id=2, num_labels=3, init_std=0.3,
        max_position_embeddings=24,
    )  # fmt: skip
    return BartForSequenceClassification(config).train()


MODELS = {
    **{f"own, {name}": (lambda draw=draw: Own(draw).train()) for name, draw in SHARED.items()},
    "weight drop": lambda: awd(recurrent_dropouts={"dropconnect": 0.5}),
    "word dropout": lambda: awd(embedding_dropout=0.5),
    "layer drop": bart,
}


def seeded(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def telling_seed(model, batch):
    """One after which two forwards differ: whether a layer is dropped is a coin."""
    for seed in range(30):
        seeded(seed)
        if not torch.equal(model(**batch)["logits"], model(**batch)["logits"]):
            return seed
    raise AssertionError("nothing is random here")


def by_hand(model, batch, alpha, seed):
    """Two forwards, one after the other: 1/2 [L_1 + L_2] + alpha mean (z_1 - z_2)^2."""
    model.zero_grad()
    seeded(seed)
    one, two = model(**batch), model(**batch)
    apart = (one["logits"] - two["logits"]).square().mean()
    ((one["loss"] + two["loss"]) / 2 + alpha * apart).backward()
    return {"task": (one["loss"] + two["loss"]).detach() / 2, "consistency": alpha * apart.detach()}, gradients(model)


def ours(expression, model, batch, seed=5, **options):
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = Regularization(parse(expression), model, **options)
    seeded(seed)
    losses = one.backward(batch)
    one.close()
    return losses, gradients(model)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in MODELS for how in ("fast", "lean", "single")),
        # Dynamo makes constants of numbers that numpy or Python draw.
        *((f"own, {name}", "compiled") for name in ("torch", "weight", "layer drop by torch")),
        ("weight drop", "compiled"),
    ],
)
def test_each_pass_has_a_draw_of_its_own(name, how):
    model, batch = MODELS[name](), tiny_batch(5)
    seed = telling_seed(model, batch)
    expected, theirs = by_hand(model, batch, 2.0, seed)
    assert expected["consistency"] > 1e-6
    options = {"fast": {}, "lean": {"memory": "lean"}, "single": {"single_backward": True}, "compiled": {}}[how]
    if how == "compiled":
        called = torch.compile(model, backend="eager")
        found, mine = ours("fraternal(alpha=2)", called, batch, seed)
        torch.testing.assert_close(found, expected)
        mine = {name.removeprefix("_orig_mod."): gradient for name, gradient in mine.items()}
    else:
        found, mine = ours("fraternal(alpha=2)", model, batch, seed, **options)
        torch.testing.assert_close(found, expected)
    assert_same_gradients(mine, theirs)


def counted(model):
    """(rows, whether it learns) of each forward from now on."""
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((len(kwargs["input_ids"]), torch.is_grad_enabled())), with_kwargs=True
    )
    return seen


def test_where_each_example_has_its_own_the_passes_are_one_batch_and_the_model_is_looked_at_once():
    model = tiny_model(dropout=0.1)
    seen = counted(model)
    one = Regularization(parse("rat"), model, length_buckets="off")
    one.backward(tiny_batch())
    assert [rows for rows, learns in seen if learns] == [4, 8]
    seen.clear()
    for size in (4, 3):
        one.backward(tiny_batch(size))
    assert seen == [(4, True), (8, True), (3, True), (6, True)]


@pytest.mark.parametrize("expression", ["plain", "fgm", "r3f", "neftune", "pi_model"])
def test_one_pass_looks_at_nothing(expression):
    seen = counted(model := tiny_model(dropout=0.1))
    Regularization(parse(expression), model, length_buckets="off").backward(tiny_batch())
    assert sum(not learns for _, learns in seen) <= 1  # which is where the embeddings are found


def test_a_look_leaves_no_trace():
    model, batch = Own(lambda self, hidden: F.dropout(hidden) + F.dropout(torch.ones(40))).train(), tiny_batch()
    model.hidden.eval()
    seeded(1)
    before, OWN_before = RandomState(CPU), OWN.bit_generator.state
    one = Regularization(parse("rdrop"), model)
    assert "draws 40 numbers" in str(one._probe.why_one_by_one(batch))
    assert RandomState(CPU) == before
    assert OWN.bit_generator.state == OWN_before
    assert (model.runs, model.seen, model.training, model.hidden.training) == (0, 0, True, False)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_hooks
    one.backward(batch)
    assert (model.runs, model.seen) == (1, 2), "buffers change once for a batch"


def test_the_reason_is_told_once(caplog):
    caplog.set_level(logging.INFO)
    one = Regularization(parse("rdrop"), awd(recurrent_dropouts={"dropconnect": 0.5}))
    for _ in range(3):
        one.backward(tiny_batch())
    (line,) = [record.getMessage() for record in caplog.records if "one by one" in record.getMessage()]
    assert "draws 576 numbers for some examples and 576 for twice as many" in line


def test_what_is_switched_on_later_is_seen_then():
    """Curriculum dropout begins at a rate of 0, where nothing is drawn."""
    model = awd(recurrent_dropouts={"dropconnect": 0.5})
    layer = next(m for m in model.modules() if getattr(getattr(m, "dropouts", None), "dropconnect", 0) > 0)
    layer.dropouts.dropconnect = 0.0
    seen = counted(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = Regularization(parse("rdrop"), model)
    one.backward(tiny_batch())
    assert [rows for rows, learns in seen if learns] == [8]
    layer.dropouts.dropconnect = 0.3
    assert one.backward(tiny_batch())["consistency"] > 1e-6
    looks = len(seen)
    layer.dropouts.dropconnect = 0.4
    one.backward(tiny_batch())
    assert seen[looks:] == [(4, True), (4, True)]


# -- in parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", ["fgm(epsilon=0.5)", "fraternal(alpha=2)"])
def test_what_is_drawn_once_is_drawn_once_for_all_lengths(expression, monkeypatch):
    """A batch that is split by length would drop a word in one part and keep it in another."""
    monkeypatch.setattr(regularization, "overhead", lambda model: 0.0)
    monkeypatch.setattr(regularization, "why_not_bucketed", lambda *args: None)
    split = counted(model := Own(lambda self, hidden: F.dropout(hidden)).train())
    ours(expression, model, tiny_batch())
    assert [rows for rows, learns in split if learns][:2] in ([1, 1], [2, 2])
    seen = counted(model := Own(SHARED["torch"]).train())
    one = Regularization(parse(expression), model)
    one.backward(tiny_batch())
    assert {rows for rows, learns in seen if learns} == {4}
    assert "draws 40 numbers" in str(one.why_not_bucketed)


# -- again -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own, numpy", "own, python", "own, torch", "weight drop"])
def test_a_search_and_a_pass_that_runs_again_draw_what_was_drawn(name):
    """VAT's divergence at a start of nothing is that of the masks, which are the same: 0."""
    model = MODELS[name]()
    seen = []
    one = Regularization(parse("vat(start=1e-3)"), model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terms, "mean_divergence", lambda *args: seen.append(mean_divergence(*args)) or seen[-1])
        one.backward(tiny_batch())
    assert float(seen[0]) < 1e-5 < float(seen[1])


@pytest.mark.parametrize("name", UNREPEATABLE)
def test_what_cannot_be_drawn_again_is_refused_where_it_must_be(name):
    model = Own(UNREPEATABLE[name]).train()
    for expression, memory in (("vat", "fast"), ("freelb", "fast"), ("rdrop", "lean")):
        one = Regularization(parse(expression), model, memory=memory)
        with pytest.raises(ValueError, match="repeats a pass of Own under the same random numbers, and ") as error:
            one.backward(tiny_batch())
        assert "\n" not in str(error.value)
    for expression in ("fgm", "rdrop"):
        seen = counted(model)
        Regularization(parse(expression), model).backward(tiny_batch())
        assert {rows for rows, learns in seen if learns} == {4}


def test_spec_augment_runs_again_as_it_ran():
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
        conv_kernel=(8, 4), conv_stride=(4, 4), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2, mask_time_prob=0.5, mask_time_length=2, num_labels=3, classifier_proj_size=8,
        layerdrop=0.3, initializer_range=0.3,
    )  # fmt: skip
    model = Wav2Vec2ForSequenceClassification(config).train()
    batch = {"input_values": torch.randn(4, 400), "labels": torch.randint(3, (4,))}
    seed = telling_seed(model, batch)
    expected, theirs = by_hand(model, batch, 2.0, seed)
    for memory in ("fast", "lean"):
        found, mine = ours("fraternal(alpha=2)", model, batch, seed, memory=memory)
        torch.testing.assert_close(found, expected)
        assert_same_gradients(mine, theirs)


# -- copies that would meet ------------------------------------------------------------------------------------------


class Contrast(Own):
    """In-batch negatives: which of the batch is the other half of a pair."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = super().forward(input_ids)["logits"]
        halves = self.hidden(self.embedding(input_ids)).mean(1)
        loss = F.cross_entropy(halves @ F.dropout(halves, 0.1, self.training).T, torch.arange(len(halves)))
        return {"loss": loss, "logits": logits}


class Similarities(Own):
    """Its logits are of every example with every other."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        halves = F.dropout(self.hidden(self.embedding(input_ids)).mean(1), 0.1, self.training)
        logits = halves @ halves.T
        return {"loss": F.cross_entropy(logits, torch.arange(len(halves))), "logits": logits}


class Summed(Own):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        return {**outputs, "loss": 4 * outputs["loss"] if len(kwargs["input_ids"]) == 4 else 8 * outputs["loss"]}


@pytest.mark.parametrize("kind", [Contrast, Similarities, Summed])
def test_copies_never_meet_in_one_loss(kind):
    model, batch = kind(lambda self, hidden: F.dropout(hidden)).train(), tiny_batch()
    expected, theirs = by_hand(model, batch, 2.0, 5)
    found, mine = ours("fraternal(alpha=2)", model, batch, 5)
    torch.testing.assert_close(found, expected)
    assert_same_gradients(mine, theirs)


class Patches(Own):
    """Several patches for each text, all in one tensor, as many as `counts` says."""

    def forward(self, patches, counts, input_ids, labels=None, attention_mask=None):
        outputs = super().forward(input_ids)
        whose = torch.repeat_interleave(torch.arange(len(counts)), counts)
        logits = outputs["logits"] + torch.zeros(len(counts), 3).index_add(0, whose, patches)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("expression", ["fraternal(alpha=2)", "rat(epsilon=0.5)"])
def test_inputs_that_are_not_one_for_each_example(expression):
    model = Patches(lambda self, hidden: F.dropout(hidden)).train()
    batch = {"patches": torch.randn(7, 3), "counts": torch.tensor([1, 2, 3, 1]), **tiny_batch()}
    found, mine = ours(expression, model, batch, 5)
    if "fraternal" in expression:
        expected, theirs = by_hand(model, batch, 2.0, 5)
        torch.testing.assert_close(found, expected)
        assert_same_gradients(mine, theirs)
    assert all(torch.isfinite(value) and value > 0 for value in found.values())


class Boxes(Own):
    """As detectors do: the labels are a list with a dictionary for each image."""

    def forward(self, input_ids, labels, attention_mask=None):
        logits = super().forward(input_ids)["logits"].unsqueeze(1) * torch.tensor([1.0, -1.0]).view(1, 2, 1)
        losses = [F.cross_entropy(z[: len(y["classes"])], y["classes"]) for z, y in zip(logits, labels, strict=True)]
        return {"loss": torch.stack(losses).mean(), "logits": logits}


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_labels_that_are_dictionaries(memory):
    model = Boxes(lambda self, hidden: F.dropout(hidden)).train()
    batch = tiny_batch(3) | {"labels": [{"classes": torch.tensor(own)} for own in ([0, 2], [1], [2])]}
    expected, theirs = by_hand(model, batch, 2.0, 5)
    found, mine = ours("fraternal(alpha=2)", model, batch, 5, memory=memory)
    torch.testing.assert_close(found, expected)
    assert_same_gradients(mine, theirs)
    assert "labels is a list" in str(Regularization(parse("rdrop"), model)._probe.why_one_by_one(batch))
    assert ours("rat(epsilon=0.5)", model, batch)[0]["adversarial_task"] > 0

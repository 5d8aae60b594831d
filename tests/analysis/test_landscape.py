"""Directions by the rule, surfaces known in closed form, rows made at once, and models left as they were."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import nn

from hf_rat.analysis.directions import random_directions, trained_weights
from hf_rat.analysis.landscape import area_below, axis, landscape_rows
from hf_rat.analysis.lines import Line
from hf_rat.models import RNNConfig, RNNForSequenceClassification


class Bowl(nn.Module):
    """L(w) = mean over the batch of a . (w - c)^2: its landscape is a quadratic."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))

    def forward(self, a, **kwargs):
        return {"loss": (a * (self.w - 0.5).square()).sum((1, 2)).mean() + self.b.square().sum()}


class Own(nn.Module):
    """What no list of ours can know: normalisation of a batch, a buffer that counts, weights seen from a list."""

    def __init__(self, listed=False):
        super().__init__()
        self.table = nn.Embedding(60, 8)
        self.layer = nn.Linear(8, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.listed = [self.head.weight] if listed else None

    def forward(self, input_ids, attention_mask, labels):
        self.calls += 1
        x = self.table(input_ids)
        x = self.layer(x) * attention_mask.unsqueeze(-1)
        weight = self.listed[0] if self.listed else self.head.weight
        logits = nn.functional.linear(self.norm(x.sum(1)).relu(), weight, self.head.bias)
        return nn.functional.cross_entropy(logits, labels), logits


class Convolves(nn.Module):
    """Torch's own convolution over concatenated, scaled and split vectors, with the vectors' mean beside it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.place = nn.Embedding(60, 4), nn.Embedding(9, 4)
        self.layer, self.head = nn.Conv1d(8, 6, 2), nn.Linear(10, 3)

    def forward(self, input_ids, attention_mask, labels):
        words = self.table(input_ids)
        places = self.place(torch.arange(input_ids.size(1))).expand_as(words)
        x = torch.cat([0.5 * words, places - words], -1).masked_fill(attention_mask.unsqueeze(-1) == 0, 0.0)
        mean = x.chunk(2, -1)[1].mean(1)
        answers = self.layer(x.transpose(1, 2))
        answers.relu_()
        logits = self.head(torch.cat([answers.amax(2), mean], 1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def recurrent(cell="gru", **settings):
    torch.manual_seed(0)
    config = RNNConfig(
        vocab_size=60,
        embedding_size=8,
        hidden_size=5,
        num_labels=3,
        pad_token_id=0,
        cell=cell,
        initializer_range=0.5,
        **settings,
    )
    return RNNForSequenceClassification(config)


MODELS = {
    "textcnn": lambda: tiny_model("textcnn", dropout=0.3),
    "bert": lambda: tiny_model("bert", dropout=0.1),
    "gpt2": lambda: tiny_model("gpt2"),  # its embeddings are tied in other heads, its layers are Conv1D
    "han": lambda: tiny_model("han"),
    "gru": recurrent,
    "bilstm": lambda: recurrent("lstm", bidirectional=True, pooling="mean"),
    "own": Own,
    "convolves": Convolves,
    "own, from a list": lambda: Own(listed=True),
}


def naive(model, batches, directions, xs, ys):
    """By the book: a copy of the model, the weights written, one batch after the other."""
    other = copy.deepcopy(model).eval()
    if getattr(other, "listed", None):
        other.listed = [other.head.weight]
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = []
    with torch.no_grad():
        for y in ys:
            row = []
            for x in xs:
                for name, p in other.named_parameters():
                    p.copy_(start[name] + x * directions[0][name] + y * directions[1][name])
                losses = []
                for batch in batches:
                    found = other(**batch)
                    losses.append(float(found[0] if isinstance(found, tuple) else found["loss"]))
                row.append(np.average(losses, weights=[len(batch["labels"]) for batch in batches]))
            rows.append(row)
    return rows


def everything(model):
    """All that a measurement must leave alone."""
    return {
        **{name: x.clone() for name, x in model.state_dict().items()},
        **{f"grad of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "modes": torch.tensor([module.training for module in model.modules()]),
        "random": torch.random.get_rng_state(),
    }


def assert_unchanged(model, before):
    after = everything(model)
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


# -- directions ------------------------------------------------------------------------------------------------------


def test_a_filter_of_a_direction_is_as_long_as_that_of_the_weight():
    model = tiny_model("textcnn")
    one, two = random_directions(model, 2, seed=3)
    for name, w in model.named_parameters():
        for row in range(len(w)) if w.dim() > 1 else []:
            assert float(one[name][row].norm()) == pytest.approx(float(w[row].detach().norm()), rel=1e-5)
        if w.dim() == 1:
            assert not one[name].any()
    assert not one["embeddings.weight"][0].any(), "the vector of padding is zero"
    kernel = "convolutions.0.weight"
    cosine = float((one[kernel] * two[kernel]).sum() / one[kernel].norm() / two[kernel].norm())
    assert abs(cosine) < 0.4, "independent draws of 192 numbers"


def test_whole_tensors_and_biases_by_the_rule():
    model = tiny_model("bert")
    (whole,) = random_directions(model, 1, rule="tensor", biases="move")
    (single,) = random_directions(model, 1, rule="filter", biases="move")
    for name, w in model.named_parameters():
        assert float(whole[name].norm()) == pytest.approx(float(w.detach().norm()), rel=1e-5), name
        if w.dim() == 1:
            assert torch.allclose(single[name].abs(), w.abs()), "a number is a filter of its own"
    gains = single["bert.embeddings.LayerNorm.weight"]
    assert 0 < int((gains < 0).sum()) < len(gains)


def test_seeds_frozen_and_tied_weights():
    model = tiny_model("bert")
    model.classifier.weight.requires_grad_(False)
    before = torch.random.get_rng_state()
    one, again, other = (random_directions(model, 1, seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(before, torch.random.get_rng_state())
    name = "bert.pooler.dense.weight"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])
    assert "classifier.weight" not in one
    tied = nn.Module()
    tied.first, tied.second = nn.Linear(3, 3), nn.Linear(3, 3)
    tied.second.weight = tied.first.weight
    assert list(trained_weights(tied)) == ["first.weight", "first.bias", "second.bias"]


@pytest.mark.parametrize(
    ("setting", "words"), [({"rule": "row"}, "rule='row'"), ({"biases": "keep"}, "biases='keep'")]
)
def test_unknown_words(setting, words):
    with pytest.raises(ValueError, match=words):
        random_directions(Bowl(), **setting)
    with pytest.raises(ValueError, match="no weight is trained"):
        random_directions(Bowl().requires_grad_(False))


# -- surfaces --------------------------------------------------------------------------------------------------------


def test_a_bowl_in_closed_form():
    model = Bowl()
    batches = [{"a": torch.rand(3, 2, 2, dtype=torch.float64)}, {"a": torch.rand(1, 2, 2, dtype=torch.float64)}]
    directions = random_directions(model, 2, biases="move")
    xs, ys = axis(2.0, 5), axis(1.0, 3)
    rows = list(landscape_rows(model, batches, directions, xs, ys))
    mean = torch.cat([batch["a"] for batch in batches]).mean(0)
    for row, y in zip(rows, ys, strict=True):
        for found, x in zip(row.losses, xs, strict=True):
            w, b = (getattr(model, n).detach() + x * directions[0][n] + y * directions[1][n] for n in "wb")
            assert found == pytest.approx(float((mean * (w - 0.5).square()).sum() + b.square().sum()), rel=1e-12)
        assert row.accuracies is None


@pytest.mark.parametrize("kind", MODELS)
def test_the_surface_is_that_of_the_plain_loop(kind):
    model = MODELS[kind]().train()
    batches = [tiny_batch(5, 7), tiny_batch(3, 6, seed=1)]
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    directions = random_directions(model, 2, seed=1, biases="move")
    xs, ys = axis(1.0, 5), axis(0.5, 3)
    before, told = everything(model), []
    rows = list(landscape_rows(model, batches, directions, xs, ys, say=told.append))
    assert_unchanged(model, before)
    assert np.allclose([row.losses for row in rows], naive(model, batches, directions, xs, ys), rtol=1e-5, atol=1e-5)
    spread = np.ptp([row.losses for row in rows])
    assert spread > 1e-2, "a flat surface shows nothing"
    assert len(told) == (kind == "own, from a list"), told


@pytest.mark.parametrize(
    ("kind", "products"), [("textcnn", 3), ("gru", 1), ("bilstm", 2), ("bert", 0), ("own", 1), ("convolves", 1)]
)
def test_the_first_products_are_made_once(kind, products):
    model = MODELS[kind]().eval()
    (direction,) = random_directions(model, 1)
    start = {name: p.detach() for name, p in model.named_parameters()}
    line = Line(model, tiny_batch(), start, direction)
    for t in axis(1.0, 9):
        line.at(t)
    assert line.products == products


def test_accuracy_and_rows_left_out():
    model, batches = tiny_model("textcnn"), [tiny_batch(6), tiny_batch(2, seed=2)]
    directions = random_directions(model)
    xs = axis(1.0, 3)
    whole = list(landscape_rows(model, batches, directions, xs, xs))
    parts = [
        *landscape_rows(model, batches, directions, xs, xs, done=[1]),
        *landscape_rows(model, batches, directions, xs, xs, done={0, 2}),
    ]
    assert sorted(parts, key=lambda row: row.number) == whole, "bit for bit, whatever else is measured"
    model.eval()
    right = sum(int((model(**batch).logits.argmax(1) == batch["labels"]).sum()) for batch in batches)
    assert whole[1].accuracies[1] == right / 8
    (line,) = landscape_rows(model, batches, directions[:1], xs)
    assert line.losses == whole[1].losses


class Falls(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, 2))

    def forward(self, labels):
        if float(self.w.detach().max()) > 1.5:
            raise RuntimeError("far out")
        return {"loss": self.w.sum()}


def test_after_an_exception_the_model_is_as_it_was():
    model = Falls().train()
    before = everything(model)
    directions = [{"w": torch.ones(2, 2)}]
    with pytest.raises(RuntimeError, match="far out"):
        list(landscape_rows(model, [{"labels": torch.zeros(2)}], directions, axis(1.0, 5), say=lambda text: None))
    assert_unchanged(model, before)


class Routed(nn.Module):
    """Which row of the weights a forward reads depends on the weights."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        self.gate = nn.Parameter(torch.tensor([[0.2], [0.0]]))

    def forward(self, labels):
        chosen = self.gate.squeeze(1).argmax().unsqueeze(0)
        row = self.experts.index_select(0, chosen)
        return {"loss": (row @ self.experts.t()).sum()}


def test_what_is_chosen_by_the_point_is_not_remembered():
    model = Routed()
    directions = [{"experts": torch.tensor([[0.5, 0.0], [0.0, 0.7]]), "gate": torch.tensor([[0.0], [1.0]])}]
    (row,) = landscape_rows(model, [{"labels": torch.zeros(1)}], directions, axis(1.0, 5))
    for x, found in zip(axis(1.0, 5), row.losses, strict=True):
        experts = model.experts.detach() + x * directions[0]["experts"]
        assert found == pytest.approx(float((experts[int(x > 0.2)] @ experts.t()).sum()), rel=1e-6)


@pytest.mark.parametrize(("radius", "points"), [(0.0, 5), (-1.0, 5), (float("nan"), 5), (1.0, 2)])
def test_axes_that_are_none(radius, points):
    with pytest.raises(ValueError, match=r"radius=|points="):
        axis(radius, points)


def test_no_loss_no_batch():
    model = tiny_model("textcnn")
    batch = tiny_batch(kind="none")
    with pytest.raises(ValueError, match="returned no loss"):
        list(
            landscape_rows(model, [batch], random_directions(model), axis(1.0, 3), axis(1.0, 3), say=lambda text: None)
        )
    with pytest.raises(ValueError, match="batches is empty"):
        list(landscape_rows(model, [], random_directions(model), axis(1.0, 3), axis(1.0, 3)))


# -- the area below a level ------------------------------------------------------------------------------------------


def test_area_of_an_ellipse_a_ring_and_the_whole():
    xs = ys = axis(1.0, 101)
    bowl = [[2 * x * x + 5 * y * y for x in xs] for y in ys]
    assert area_below(xs, ys, bowl, 0.8) == pytest.approx(math.pi * 0.8 / math.sqrt(10), rel=1e-3)
    ring = [[(math.hypot(x, y) - 0.5) ** 2 for x in xs] for y in ys]
    assert area_below(xs, ys, ring, 0.04) == pytest.approx(math.pi * (0.7**2 - 0.3**2), rel=5e-3)
    assert area_below(xs, ys, bowl, 100.0) == pytest.approx(4.0)
    assert area_below(xs, ys, bowl, -1.0) == 0.0
    assert area_below(xs, ys, [[math.inf if x > 0 else 0.0 for x in xs] for y in ys], 1.0) == pytest.approx(
        2.0, rel=1e-6
    )

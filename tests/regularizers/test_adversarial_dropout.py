"""Adversarial dropout on the recurrent state: against the equations step by step, and against all masks there are."""

import itertools
import logging
import math
import warnings

import keyed
import pytest
import runs
import torch
from tiny import FIRST, VOCABULARY, assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from hf_rat import Regularization, adversarial_dropout, parse, vat
from hf_rat.models.configuration_han import HANConfig
from hf_rat.models.configuration_rnn import RNNConfig
from hf_rat.models.modeling_han import HANForSequenceClassification
from hf_rat.models.modeling_rnn import RNNForSequenceClassification, RNNForTokenClassification
from hf_rat.models.modeling_rnn_lm import RNNForCausalLM
from hf_rat.models.recurrent import GRU, LSTM
from hf_rat.models.recurrent_dropouts import Dropouts
from hf_rat.passes.sites import RECURRENT, SITES
from hf_rat.regularizers import perturbations

quiet = pytest.mark.filterwarnings("ignore:.*has no dropout")
CELLS = {"LSTM": LSTM, "GRU": GRU}
UNITS, WIDTH, CLASSES = 12, 6, 3


class Classifier(nn.Module):
    """Word embeddings, dropout, a recurrent layer, and logits from the state after the last valid step."""

    def __init__(self, cell="LSTM", dropout=0.0, seed=0, **options):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.rnn = CELLS[cell](WIDTH, UNITS, **options)
        self.output = nn.Linear(UNITS * (2 if self.rnn.bidirectional else 1), CLASSES)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask, labels=None):
        x = self.dropout(self.embedding(input_ids))
        _, state = self.rnn(x, lengths=attention_mask.sum(1))
        h = state[0] if isinstance(state, tuple) else state
        logits = self.output(torch.cat([*h[-2:]], -1) if self.rnn.bidirectional else h[-1])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class Tagger(Classifier):
    """The same with logits at each step."""

    def forward(self, input_ids, attention_mask, labels=None):
        h, _ = self.rnn(self.dropout(self.embedding(input_ids)), lengths=attention_mask.sum(1))
        logits = self.output(h)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)


def classifier(cell="LSTM", wide=3.0, kind=Classifier, **options):
    """In double precision, with weights so wide that a mask is felt."""
    model = kind(cell, **options).double()
    for name, parameter in model.named_parameters():
        if "weight" in name and "embedding" not in name:
            parameter.data *= wide
    return model


class Seen:
    """The masks and the outputs of the recurrent layer of a model, pass by pass; a look, without a graph, is none."""

    def __init__(self, model):
        self.masks, self.outputs = [], []
        model.rnn.register_forward_pre_hook(self._before, with_kwargs=True)
        model.rnn.register_forward_hook(self._after)

    def _before(self, module, args, kwargs):
        mask = kwargs.get("recurrent_mask")
        if torch.is_grad_enabled():
            self.masks.append(None if mask is None else mask.detach().clone())

    def _after(self, module, args, output):
        if torch.is_grad_enabled():
            self.outputs.append(output[0].detach())


def backward(regularizer, model, batch, seed=3, **settings):
    """(named losses, masks of the passes); gradients are left in the model."""
    regularizer = parse(regularizer) if isinstance(regularizer, str) else regularizer
    regularization = Regularization(regularizer, model)
    seen = Seen(model)
    torch.manual_seed(seed)
    losses = regularization.backward(batch, **settings)
    regularization.close()
    return losses, seen.masks


# -- the equations, by hand ------------------------------------------------------------------------------------------


def last_state(model, x, lengths, mask):
    """h after each example's last step, example by example and step by step, from the cells' equations."""
    w, u = model.rnn.weight_ih_l0, model.rnn.weight_hh_l0
    b, d = model.rnn.bias_ih_l0, model.rnn.bias_hh_l0
    states = []
    for example, length in enumerate(lengths.tolist()):
        h = c = x.new_zeros(UNITS)
        m = mask[example] * UNITS / mask[example].sum()
        for t in range(length):
            left, right = w @ x[example, t] + b, u @ (m * h) + d
            if model.rnn.mode == "LSTM":
                i, f, g, o = (left + right).chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            else:
                (r, z, n), (hr, hz, hn) = left.chunk(3), right.chunk(3)
                z = (z + hz).sigmoid()
                n = (n + (r + hr).sigmoid() * hn).tanh()
                h = (1 - z) * n + z * h
        states.append(h)
    return torch.stack(states)


def kl(p, q):
    """Per example, of logits."""
    p, q = p.softmax(-1), q.softmax(-1)
    return (p * (p / q).log()).sum(-1)


def js(p, q):
    m = ((p.softmax(-1) + q.softmax(-1)) / 2).log()
    return (kl(p, m) + kl(q, m)) / 2


DISTANCES = {
    "kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "js": js,
    "logit_mse": lambda p, q: (p - q).square().mean(-1),
}


def random_flips(mask, count):
    """`count` units of each example flipped: those with the largest normal numbers."""
    mask = mask.clone()
    if count:
        for row, order in enumerate(torch.randn(mask.shape).argsort(-1, descending=True)):
            mask[row, order[:count]] = 1 - mask[row, order[:count]]
    return mask


def by_hand(model, batch, rate, start_mask="one_drop", steps=1, divergence="kl", base="ones", fixed=False):
    """The named losses, with their graphs, and the mask that was found."""
    lengths, distance = batch["attention_mask"].sum(1), DISTANCES[divergence]
    flips = math.floor(rate * UNITS)

    def logits(mask, state=None):
        after = torch.get_rng_state()
        if state is not None:
            torch.set_rng_state(state)
        x = model.dropout(model.embedding(batch["input_ids"]))
        if state is not None:
            torch.set_rng_state(after)
        return model.output(last_state(model, x, lengths, mask))

    ones = torch.ones(len(lengths), UNITS, dtype=torch.float64)
    noise = torch.get_rng_state()
    clean = prediction = logits(ones)
    origin = ones
    if base == "random":
        origin = random_flips(ones, flips)
        noise = torch.get_rng_state()
        prediction = logits(origin)
    mask = random_flips(origin, {"one_drop": 1, "random": flips, "base": 0}[start_mask])
    for k in range(steps):
        mask = mask.requires_grad_()
        fresh = start_mask == "base" and k == 0
        gap = distance(prediction.detach(), logits(mask, None if fresh else noise)).sum()
        (influence,) = torch.autograd.grad(gap, mask)
        mask = origin.clone()
        for row in range(len(lengths)):
            gains = sorted((float((1 - 2 * origin[row, j]) * influence[row, j]), j) for j in range(UNITS))
            for gain, j in gains[-max(1, flips * (k + 1) // steps) :]:
                if gain > 0:
                    mask[row, j] = 1 - mask[row, j]
    reference = prediction.detach() if fixed else prediction
    found = distance(reference, logits(mask)).mean()
    name = "noisy_smoothness" if base == "random" else "smoothness"
    return {"task": F.cross_entropy(clean, batch["labels"]), name: found}, mask


CASES = [
    {"rate": 0.25},
    {"rate": 0.25, "steps": 3, "divergence": "js"},
    {"rate": 0.4, "start_mask": "random", "steps": 2, "divergence": "reverse_kl", "fixed": True},
    {"rate": 0.3, "start_mask": "base", "steps": 2, "divergence": "logit_mse"},
    {"rate": 0.3, "base": "random", "steps": 2},
    {"rate": 0.3, "base": "random", "start_mask": "random", "fixed": True},
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("settings", CASES, ids=lambda settings: " ".join(map(str, settings.values())))
def test_losses_gradients_and_the_mask_agree_with_the_equations(cell, settings):
    batch = tiny_batch()
    ours, theirs = classifier(cell, dropout=0.2), classifier(cell, dropout=0.2)
    losses, masks = backward(adversarial_dropout(site="recurrent", **settings), ours, batch)
    torch.manual_seed(3)
    expected, mask = by_hand(theirs, batch, **settings)
    sum(expected.values()).backward()
    assert not torch.equal(mask, torch.ones_like(mask))
    assert torch.equal(masks[-1] > 0, mask > 0)
    torch.testing.assert_close(masks[-1].sum(-1), torch.full((4,), float(UNITS)))
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value.item(), rel=1e-5), name
    assert_same_gradients(gradients(ours), gradients(theirs), 1e-5)


@quiet
def test_logits_at_each_step_are_compared_at_the_valid_ones():
    batch, model = tiny_batch(), classifier(kind=Tagger)
    batch["labels"] = batch["input_ids"].remainder(CLASSES).masked_fill(batch["attention_mask"] == 0, -100)
    losses, masks = backward(adversarial_dropout(site="recurrent", rate=0.3), model, batch)
    x, lengths = model.embedding(batch["input_ids"]), batch["attention_mask"].sum(1)
    p, q = (model.output(model.rnn(x, lengths=lengths, recurrent_mask=mask)[0]) for mask in (None, masks[-1]))
    valid = torch.cat([kl(p[row, :n], q[row, :n]) for row, n in enumerate(lengths.tolist())])
    assert float(losses["smoothness"]) == pytest.approx(valid.mean().item(), rel=1e-5)
    assert losses["smoothness"] > 0


# -- the mask that is found, among all there are ---------------------------------------------------------------------


RATE, FLIPS = 0.25, 3


def allowed(units=UNITS, flips=FLIPS):
    """All masks with at most `flips` units off, (masks, units)."""
    off = [chosen for count in range(flips + 1) for chosen in itertools.combinations(range(units), count)]
    return torch.stack([torch.ones(units).index_fill(0, torch.tensor(units_off).long(), 0.0) for units_off in off])


@torch.no_grad()
def damage(model, batch, masks):
    """KL of the full net's prediction to that with a mask, (masks, batch); masks (masks, batch, units) 0/1."""
    count, size = masks.shape[:2]
    x = model.embedding(batch["input_ids"]).repeat(count, 1, 1)
    lengths = batch["attention_mask"].sum(1).repeat(count)
    scaled = masks.flatten(0, 1) * UNITS / masks.flatten(0, 1).sum(-1, keepdim=True)
    _, state = model.rnn(x, lengths=lengths, recurrent_mask=scaled)
    h = state[0] if isinstance(state, tuple) else state
    clean = model(batch["input_ids"], batch["attention_mask"]).logits
    return kl(clean.repeat(count, 1), model.output(h[-1])).view(count, size)


def share_beaten(cell, start_mask, steps, nets=10, size=12):
    """(mean share of the allowed masks that are no worse than the one found, mean ratio to the worst)."""
    beaten, ratios = [], []
    for seed in range(nets):
        model, batch = classifier(cell, wide=1.0, seed=seed), tiny_batch(size, 9, seed=seed)
        recipe = adversarial_dropout(site="recurrent", rate=RATE, start_mask=start_mask, steps=steps)
        found = backward(recipe, model, batch, seed)[1][-1] > 0
        assert ((~found).sum(-1) <= FLIPS).all()
        everyone = damage(model, batch, allowed().double()[:, None].expand(-1, size, -1))
        ours = damage(model, batch, found.double()[None])
        beaten.append((everyone <= ours * (1 + 1e-9)).double().mean())
        ratios.append((ours / everyone.amax(0)).mean())
    return float(torch.stack(beaten).mean()), float(torch.stack(ratios).mean())


@quiet
@pytest.mark.parametrize("start_mask", ["one_drop", "random"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_mask_is_worse_than_95_percent_of_the_allowed_ones_and_refining_helps(cell, start_mask):
    once, once_ratio = share_beaten(cell, start_mask, 1)
    twice, twice_ratio = share_beaten(cell, start_mask, 2)
    assert once > 0.9
    assert twice >= 0.95
    assert twice >= once
    assert twice_ratio >= once_ratio


@quiet
@pytest.mark.parametrize("base", ["ones", "random"])
@pytest.mark.parametrize(("rate", "flips"), [(0.0, 0), (0.08, 0), (0.1, 1), (0.25, 3), (0.49, 5), (0.99, 11)])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_at_most_floor_rate_h_units_differ_from_the_base_mask(base, rate, flips, steps):
    model, batch = classifier(), tiny_batch(16)
    _, masks = backward(adversarial_dropout(site="recurrent", rate=rate, base=base, steps=steps), model, batch)
    origin = masks[1] > 0 if base == "random" else torch.ones(16, UNITS, dtype=torch.bool)
    assert ((~origin).sum(-1) == (flips if base == "random" else 0)).all()
    assert (((masks[-1] > 0) != origin).sum(-1) <= flips).all()


@quiet
@pytest.mark.parametrize("base", ["ones", "random"])
def test_no_flip_without_gain_and_with_a_random_base_flips_go_both_ways(base):
    """By a finite difference of the divergence in the mask, at the start mask."""
    model, batch = classifier(), tiny_batch(16)
    recipe = adversarial_dropout(site="recurrent", rate=0.4, base=base)
    _, masks = backward(recipe, model, batch)
    *_, start, found = masks
    origin = masks[1] > 0 if base == "random" else torch.ones_like(start, dtype=torch.bool)
    start, x, lengths = (start > 0).double(), model.embedding(batch["input_ids"]), batch["attention_mask"].sum(1)

    @torch.no_grad()
    def logits(mask):
        scaled = mask * UNITS / mask.sum(-1, keepdim=True)
        return model.output(model.rnn(x, lengths=lengths, recurrent_mask=scaled)[1][0][-1])

    here, step = logits(origin.double()), 1e-5
    slopes = []
    for unit in range(UNITS):
        nudge = step * F.one_hot(torch.tensor(unit), UNITS).double()
        slopes.append((kl(here, logits(start + nudge)) - kl(here, logits(start - nudge))) / (2 * step))
    flip = (found > 0) != origin
    gain = torch.stack(slopes, -1) * torch.where(origin, -1.0, 1.0)
    assert flip.any()
    assert (gain[flip] > 0).all()
    assert (flip & ~origin).any() == (base == "random")
    # Where fewer than allowed were flipped, no gain was left.
    few = flip.sum(-1) < 4
    assert (gain[few][~flip[few]] <= 1e-8).all()


@quiet
def test_the_inequality_of_fraternal_expectation_linear_and_adversarial_dropout():
    """1/4 R_FD <= R_EL <= R_AdD: squared distances of outputs, expectations and the maximum over all 2^6 masks."""
    rate, units = 0.3, 6
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)
    weights = torch.where(masks > 0, 1 - rate, rate).prod(-1)
    assert float(weights.sum()) == pytest.approx(1.0)
    gaps = []
    for seed in range(10):
        torch.manual_seed(seed)
        rnn, head = GRU(3, units, dtype=torch.float64), nn.Linear(units, 2).double()
        x = torch.randn(1, 7, 3, dtype=torch.float64).expand(len(masks) + 1, 7, 3)
        # Inverted dropout: the mean mask is all ones.
        every = torch.cat([masks / (1 - rate), torch.ones(1, units).double()])
        z = head(rnn(x, recurrent_mask=every)[1][-1])
        z, mean = z[:-1], z[-1]
        linear = (weights * (z - mean).square().sum(-1)).sum()
        fraternal = (weights[:, None] * weights * (z[:, None] - z).square().sum(-1)).sum()
        worst = (z - mean).square().sum(-1).max()
        assert 0 < fraternal / 4 <= linear <= worst
        gaps.append((fraternal / linear).item())
    assert max(gaps) > 1.5, "the first bound is far from tight, and proves nothing"


@quiet
@pytest.mark.parametrize("name", ["fraternal", "expectation_linear"])
def test_on_a_recurrent_layer_the_two_recipes_are_the_two_expectations(name):
    """The mean over many drawn masks, within four standard errors of the sum over all 2^12 masks."""
    rate, copies = 0.3, 1500
    model = classifier("GRU", dropout=0.0)
    model.rnn.dropouts = Dropouts(variational=rate)
    one = {key: value[1:2] for key, value in tiny_batch().items()}
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=UNITS)), dtype=torch.float64)
    weights = torch.where(masks > 0, 1 - rate, rate).prod(-1)
    every = torch.cat([masks / (1 - rate), torch.ones(1, UNITS).double()])
    with torch.no_grad():
        x = model.embedding(one["input_ids"][:, : int(one["attention_mask"].sum())])
        z = model.output(model.rnn.eval()(x.expand(len(every), -1, -1), recurrent_mask=every)[1][-1])
    model.rnn.train()
    gaps = torch.cdist(z, z[:-1] if name == "fraternal" else z[-1:]).square()[:-1] / CLASSES
    pairs = weights[:, None] * weights if name == "fraternal" else weights[:, None]
    mean = (pairs * gaps).sum()
    spread = ((pairs * gaps.square()).sum() - mean**2).sqrt() / math.sqrt(copies)
    batch = {key: value.expand(copies, *value.shape[1:]) for key, value in one.items()}
    losses, _ = backward(f"{name}(alpha=1)", model, batch)
    drawn = float(losses["consistency" if name == "fraternal" else "smoothness"])
    assert abs(drawn - mean) < 4 * spread
    assert spread < mean / 10


# -- padding, noise, other layers ------------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("cell", CELLS)
def test_a_padded_batch_is_its_examples_alone(cell, monkeypatch):
    batch, numbers = tiny_batch(), torch.randn(4, UNITS)
    recipe = "adversarial_dropout(site='recurrent', rate=0.3, steps=2)"
    rows = [slice(0, 4)]
    monkeypatch.setattr(perturbations, "draw", lambda kind, shape, device: numbers[rows[0], : shape[1]][: shape[0]])
    together = classifier(cell)
    losses, masks = backward(recipe, together, batch)
    alone, parts, found = classifier(cell), [], []
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        rows[0] = slice(row, row + 1)
        one = {name: value[rows[0]] for name, value in batch.items()}
        one = {name: value[:, :length] if value.dim() == 2 else value for name, value in one.items()}
        part, seen = backward(recipe, alone, one, accumulation=4)
        parts.append(float(part["smoothness"]))
        found.append(seen[-1])
    assert min(parts) > 0
    torch.testing.assert_close(torch.cat(found), masks[-1])
    assert float(losses["smoothness"]) == pytest.approx(sum(parts) / 4, rel=1e-5)
    assert_same_gradients(gradients(together), gradients(alone), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "js", "mse", "logit_mse"])
@pytest.mark.parametrize("base", ["ones", "random"])
def test_from_the_base_mask_without_other_noise_nothing_is_found(base, divergence, dtype):
    """Exactly nothing: rounding errors are no influence. A warning says so."""
    model, batch = Classifier().to(dtype), tiny_batch()
    recipe = adversarial_dropout(site="recurrent", rate=0.4, start_mask="base", divergence=divergence, base=base)
    with pytest.warns(UserWarning, match="has no dropout"):
        losses, masks = backward(recipe, model, batch)
    assert losses["noisy_smoothness" if base == "random" else "smoothness"].abs() < 1e-7
    assert torch.equal(masks[-1], masks[1])


def test_from_the_base_mask_other_dropout_is_the_noise():
    losses, masks = backward(
        adversarial_dropout(site="recurrent", rate=0.4, start_mask="base"), classifier(dropout=0.2), tiny_batch()
    )
    assert losses["smoothness"] > 0
    assert (masks[-1] == 0).any()


@pytest.mark.parametrize("cell", CELLS)
def test_the_search_replays_every_dropout_of_a_stacked_layer(cell):
    """With no unit to flip, the pass of the search is the clean one bit for bit, and the last one is not."""
    kinds = Dropouts(layers=0.3, hidden=0.2, input=0.2, output=0.2, variational=0.2, zoneout=0.1)
    model = classifier(cell, dropout=0.2, num_layers=2, bidirectional=True)
    model.rnn.dropouts = kinds
    regularization = Regularization(adversarial_dropout(site="recurrent", rate=0, start_mask="random"), model)
    seen = Seen(model)
    regularization.backward(tiny_batch())
    clean, search, last = seen.outputs
    assert torch.equal(clean, search)
    assert not torch.equal(clean, last)


@quiet
@pytest.mark.parametrize(
    "options", [{"bidirectional": True}, {"num_layers": 2}, {"num_layers": 2, "bidirectional": True}]
)
def test_in_stacked_and_two_way_layers_the_mask_is_that_of_the_last_layer(options):
    model, batch = classifier(**options), tiny_batch()
    losses, masks = backward(adversarial_dropout(site="recurrent", rate=0.3), model, batch)
    x, lengths = model.embedding(batch["input_ids"]), batch["attention_mask"].sum(1)
    directions = 2 if model.rnn.bidirectional else 1
    everywhere = torch.ones(model.rnn.num_layers * directions, 4, UNITS)
    everywhere[-directions:] = masks[-1]
    _, (h, _) = model.rnn(x, lengths=lengths, recurrent_mask=everywhere)
    worst = model.output(torch.cat([*h[-directions:]], -1))
    clean = model(batch["input_ids"], batch["attention_mask"]).logits
    assert losses["smoothness"] > 0
    assert float(losses["smoothness"]) == pytest.approx(kl(clean, worst).mean().item(), rel=1e-5)
    assert all(gradient.any() for name, gradient in gradients(model).items() if "reverse" in name or "l1" in name)


WORDS = {"vocab_size": VOCABULARY, "embedding_size": 6, "hidden_size": 5, "initializer_range": 1.0}
LAYERS = {"num_hidden_layers": 2, "recurrent_dropouts": {"variational": 0.2, "hidden": 0.1, "dropconnect": 0.1}}
MODELS = {
    "RNN": lambda: RNNForSequenceClassification(RNNConfig(num_labels=3, bidirectional=True, **WORDS, **LAYERS)),
    "GRU": lambda: RNNForSequenceClassification(RNNConfig(num_labels=3, cell="gru", pooling="mean", **WORDS)),
    "tagger": lambda: RNNForTokenClassification(RNNConfig(num_labels=3, last_hidden_size=4, **WORDS, **LAYERS)),
    "language model": lambda: RNNForCausalLM(RNNConfig(cell="rnn", **WORDS, **LAYERS)),
    "HAN": lambda: HANForSequenceClassification(HANConfig(num_labels=3, **WORDS)),
    "HAN of sentences": lambda: HANForSequenceClassification(
        HANConfig(num_labels=3, sentence_level=True, sentence_separator_token_id=FIRST + 20, **WORDS)
    ),
}


@pytest.mark.parametrize("base", ["ones", "random"])
@pytest.mark.parametrize("name", MODELS)
def test_on_every_recurrent_model(name, base):
    torch.manual_seed(0)
    model, batch = MODELS[name]().train(), tiny_batch(8, 14)
    batch["input_ids"][:, [2, 5, 8]] = FIRST + 20  # sentences end here
    if name in ("tagger", "language model"):
        labels = batch["input_ids"] if name == "language model" else batch["input_ids"] % 3
        batch["labels"] = labels.masked_fill(batch["attention_mask"] == 0, -100)
    recipe = adversarial_dropout(site="recurrent", rate=0.4, base=base)
    losses = Regularization(recipe, model).backward(batch)
    assert losses["noisy_smoothness" if base == "random" else "smoothness"] > 1e-6
    found = gradients(model)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert all(gradient.any() for name, gradient in found.items() if "weight_hh" in name)


def test_the_last_layer_that_takes_a_mask_is_the_one():
    model = classifier()
    model.second = GRU(UNITS, 5)
    assert SITES[RECURRENT](model).module is model.second


# -- at work ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "adversarial_dropout(site='recurrent', rate=0.3) + vat(epsilon=0.5)",
        "0.5 * adversarial_dropout(site='recurrent', rate=0.3, base='random') + rat(epsilon=0.5)",
        "adversarial_dropout(site='recurrent', rate=0.3, fixed=True) + adversarial_dropout(rate=0.3)",
        "adversarial_dropout(site='recurrent', rate=0.3, steps=2, warmup=4) + rdrop(passes=3)",
    ],
)
def test_in_a_sum_streaming_changes_nothing(expression):
    batch = tiny_batch()
    streamed, whole = classifier(dropout=0.2), classifier(dropout=0.2)
    losses, _ = backward(expression, streamed, batch)
    torch.manual_seed(3)
    named = Regularization(parse(expression), whole).losses(batch)
    torch.stack(list(named.values())).sum().backward()
    assert named.keys() == losses.keys()
    for name, value in named.items():
        assert float(losses[name]) == pytest.approx(value.item(), rel=1e-6)
        assert value > 0
    assert_same_gradients(gradients(streamed), gradients(whole), 1e-6)


def test_a_sum_is_the_sum_of_its_terms():
    model, batch = classifier(dropout=0.2), tiny_batch()
    vat_only, _ = backward(vat(epsilon=0.5), classifier(dropout=0.2), batch)
    both, masks = backward(adversarial_dropout(site="recurrent", rate=0.3) + vat(epsilon=0.5), model, batch)
    assert both["task"] == vat_only["task"]
    assert both["smoothness"] > 0
    assert len(masks) == 3 + 2


@pytest.mark.parametrize("settings", ["steps=2", "start_mask='random', base='random'", "start_mask='base'"])
def test_accumulation_changes_nothing(settings):
    batch = tiny_batch(8)
    halves = [{name: value[half] for name, value in batch.items()} for half in (slice(0, 4), slice(4, 8))]
    expression = f"adversarial_dropout(site='recurrent', rate=0.3, {settings})"
    grouped, whole = classifier(dropout=0.2), classifier(dropout=0.2)
    with keyed.noise():
        parts = []
        for model, batches in ((grouped, halves), (whole, [batch])):
            regularization = Regularization(parse(expression), model)
            for part in batches:
                keyed.begin(part["input_ids"], part["attention_mask"])
                parts.append(regularization.backward(part, accumulation=len(batches)))
    for name, value in parts[2].items():
        assert float(parts[0][name] + parts[1][name]) / 2 == pytest.approx(float(value), rel=1e-5)
        assert value > 0
    assert_same_gradients(gradients(grouped), gradients(whole), 1e-5)


def test_the_trainer_trains_with_it_and_says_what_it_costs(caplog):
    with caplog.at_level(logging.INFO, logger="hf_rat.trainer.announcement"):
        ran = runs.run("adversarial_dropout(site='recurrent', rate=0.3, steps=2)", model=Classifier(dropout=0.2))
    assert "4 forward and 2 backward passes and 2 for slopes per step" in caplog.text
    assert all(log["loss_smoothness"] > 0 for log in ran.logs)


@quiet
@pytest.mark.parametrize(
    ("settings", "passes"), [("", 3), ("steps=3", 5), ("base='random'", 4), ("base='random', fixed=True", 4)]
)
def test_the_cost_is_the_passes_that_the_layer_sees(settings, passes):
    expression = f"adversarial_dropout(site='recurrent', {settings})"
    _, masks = backward(expression, classifier(), tiny_batch())
    assert len(masks) == passes == Regularization(parse(expression), classifier()).cost().forwards


@quiet
def test_evaluation_and_closing_leave_the_model_alone():
    model, batch = classifier(), tiny_batch()
    regularization = Regularization(adversarial_dropout(site="recurrent"), model)
    seen = Seen(model)
    model.eval()(**batch)
    assert seen.masks == [None]
    hooks = len(model.rnn._forward_pre_hooks)
    regularization.close()
    assert len(model.rnn._forward_pre_hooks) == hooks - 1


def test_it_reads_back_as_itself():
    recipe = adversarial_dropout(
        rate=0.04, start_mask="base", site="recurrent", steps=2, divergence="js", base="random", fixed=True, begin=3
    )
    assert parse(repr(recipe)) == recipe
    assert "site='recurrent'" in repr(recipe)
    assert "begin=3" in repr(recipe)


# -- what goes wrong, in one line ------------------------------------------------------------------------------------


def refused(model, match, kind=ValueError):
    with pytest.raises(kind, match=match) as error:
        Regularization(adversarial_dropout(site="recurrent"), model).backward(tiny_batch())
    assert "\n" not in str(error.value)
    assert type(model).__name__ in str(error.value)


@quiet
def test_a_model_without_such_a_layer_is_refused():
    model = Classifier()
    model.rnn = nn.LSTM(WIDTH, UNITS, batch_first=True)
    refused(model, 'no layer whose forward takes recurrent_mask.*site="logits"')


@quiet
def test_a_layer_of_unknown_width_is_refused():
    model = Classifier()
    del model.rnn.hidden_size
    refused(model, "LSTM of Classifier takes recurrent_mask but has no integer hidden_size")


@quiet
def test_a_layer_that_does_not_run_is_an_error():
    model = Classifier()
    model.unused = GRU(WIDTH, UNITS)
    refused(model, "never reached the recurrent state of Classifier: its GRU did not run", RuntimeError)


@quiet
def test_a_mask_that_is_there_already_is_an_error():
    class Masking(Classifier):
        def forward(self, input_ids, attention_mask, labels=None):
            h, _ = self.rnn(self.embedding(input_ids), recurrent_mask=torch.ones(len(input_ids), UNITS))
            return SequenceClassifierOutput(loss=F.cross_entropy(self.output(h[:, -1]), labels), logits=h)

    refused(Masking(), "gives its LSTM a recurrent_mask of its own")


@pytest.mark.parametrize(("rate", "told"), [(0.05, True), (0.0, False), (1 / 16, False), (0.2, False)])
def test_a_rate_that_flips_no_unit_is_told(rate, told):
    """The classifier of the tiny model reads 16 units."""
    regularization = Regularization(adversarial_dropout(rate=rate), tiny_model())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        regularization.backward(tiny_batch())
    said = [str(warning.message) for warning in caught if "flips none" in str(warning.message)]
    assert bool(said) == told
    assert all("at least 1 / 16 (about 0.063)" in line and "\n" not in line for line in said)

"""A dropout rate of a pass: every mask keeps its mean, and 0 is the evaluation network, or it is refused."""

import pytest
import torch
from tiny import tiny_batch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, expectation_linear, rat
from hf_rat.models import RNNConfig, RNNForSequenceClassification
from hf_rat.models.recurrent import GRU, LSTM
from hf_rat.passes.dropout import DropoutRate, dropout_at

pytestmark = pytest.mark.filterwarnings("ignore:.*has no dropout")


def rnn(**rates):
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "embedding_size": 8, "hidden_size": 12, "num_labels": 3, "initializer_range": 0.3}
    config = RNNConfig(**sizes, classifier_dropout=0.0, recurrent_dropouts=rates)
    return RNNForSequenceClassification(config).train()


class Own(nn.Module):
    """A model that no list knows: an encoder, what draws, and a layer that makes logits."""

    def __init__(self, *inner):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(60, 16)
        self.inner = nn.ModuleList(inner)
        self.output = nn.Linear(16, 3)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, labels=None, attention_mask=None):
        x = self.embedding(input_ids)
        for layer in self.inner:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        logits = self.output(x.mean(1))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


class RandomDepth(nn.Module):
    """Stochastic depth as published: unscaled in training, times the probability of survival at test."""

    def __init__(self, survives=0.6):
        super().__init__()
        self.linear, self.survives = nn.Linear(16, 16), survives

    def forward(self, x):
        share = self.survives if not self.training else (torch.rand(x.size(0), 1, 1) < self.survives).float()
        return x + share * self.linear(x)


class Normalized(nn.BatchNorm1d):
    def __init__(self):
        super().__init__(16)

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


# -- the reference is the evaluation network -------------------------------------------------------------------------

UNSCALED = [{"zoneout": 0.1}, {"zoneout_cell": 0.5}, {"rnndrop": 0.3}, {"recurrent": 0.4}, {"variational": 0.5}]


@pytest.mark.parametrize(
    "model",
    [*(lambda rates=rates: rnn(**rates) for rates in UNSCALED), lambda: Own(RandomDepth()).train()],
    ids=[*("-".join(rates) for rates in UNSCALED), "stochastic depth"],
)
def test_expectation_linear_compares_with_the_evaluation_network(model):
    """By its equation: E ||z(eps) - z(E[eps])||^2, on the masks that the generator gives first."""
    model, batch = model(), tiny_batch()
    regularization = Regularization(expectation_linear(alpha=1.0), model)
    regularization.losses(batch)  # whatever is looked at once
    torch.manual_seed(5)
    losses = regularization.losses(batch)
    losses["smoothness"].backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert all(module.training for module in model.modules())
    regularization.close()
    model.zero_grad()
    torch.manual_seed(5)
    dropped = model(**batch).logits
    fixed = model.eval()(**batch).logits
    penalty = (dropped - fixed).pow(2).mean()
    assert float(penalty) > 1e-6
    torch.testing.assert_close(losses["smoothness"], penalty, rtol=1e-4, atol=1e-8)
    penalty.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6])
@pytest.mark.parametrize(
    ("cell", "rates", "linear_in"),
    [
        (LSTM, {"zoneout": 0.3}, "h"),
        (LSTM, {"zoneout_cell": 0.5}, "c"),
        (LSTM, {"rnndrop": 0.3}, "c"),
        (LSTM, {"recurrent": 0.3}, "c"),
        (GRU, {"zoneout": 0.3}, "h"),
        (GRU, {"rnndrop": 0.3}, "h"),
        (GRU, {"recurrent": 0.3}, "h"),
    ],
)
def test_the_mean_of_a_step_at_any_rate_is_that_of_evaluation(cell, rates, linear_in, rate):
    """In one step these states are linear in their masks, so their mean over masks is the state at the mean mask."""
    torch.manual_seed(0)
    layer, draws = cell(3, 4, dropout=rates), 40_000
    x, h = torch.randn(1, 1, 3).expand(draws, 1, 3), torch.randn(1, 1, 4).expand(1, draws, 4)
    start = (h, 0.5 * h) if cell is LSTM else h

    def state():
        after = layer(x, start)[1]
        return (after if cell is GRU else after["hc".index(linear_in)])[0]

    with torch.no_grad():
        with DropoutRate(rate):
            drawn = state()
        layer.eval()
        expected = state()[0]
    spread = drawn.std(0)
    assert bool((spread > 0).all()) == (rate > 0)
    assert bool(((drawn.mean(0) - expected).abs() <= 5 * spread / draws**0.5 + 1e-5).all())


def test_normalization_goes_on_with_the_statistics_of_the_batch():
    model, batch = Own(nn.Dropout(0.4), Normalized()).train(), tiny_batch()
    with dropout_at(model, 0.0):
        ours = model(**batch).logits
    assert all(module.training for module in model.modules())
    x = model.embedding(batch["input_ids"])
    x = (x - x.mean((0, 1))) / (x.var((0, 1), unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(ours, model.output(x.mean(1)))
    with pytest.raises(RuntimeError), dropout_at(model, 0.0):
        raise RuntimeError
    assert all(module.training for module in model.modules())


def test_what_was_in_evaluation_stays_there():
    model = Own(nn.Dropout(0.4), RandomDepth()).train()
    model.inner[1].eval()
    with dropout_at(model, 0.0):
        assert not any(module.training for module in model.modules())
    assert model.training
    assert model.inner[0].training
    assert not model.inner[1].training


# -- what a rate reaches ---------------------------------------------------------------------------------------------

ONES = torch.ones(60, 40, 50)
REACHED = {
    "Dropout1d": nn.Dropout1d(0.5),
    "Dropout2d": lambda x: nn.Dropout2d(0.5)(x.unsqueeze(-1)).squeeze(-1),
    "Dropout3d": lambda x: nn.Dropout3d(0.5)(x[..., None, None])[..., 0, 0],
    "dropout1d in place": lambda x: F.dropout1d(x.clone(), 0.5, True, True),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
    "torch.dropout_": lambda x: torch.dropout_(x.clone(), p=0.5, train=True),
    "torch.native_dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "torch.feature_dropout": lambda x: torch.feature_dropout(x, 0.5, True),
    "torch.bernoulli of a tensor": lambda x: x * torch.bernoulli(torch.full(x.shape, 0.5)) / 0.5,
    "torch.bernoulli of a rate": lambda x: x * torch.bernoulli(x, 0.5) / 0.5,
    "Tensor.bernoulli": lambda x: x * x.bernoulli(0.5) / 0.5,
    "Tensor.bernoulli_": lambda x: x * torch.empty_like(x).bernoulli_(0.5) / 0.5,
    "Tensor.bernoulli_ by default": lambda x: x * torch.empty_like(x).bernoulli_() / 0.5,
}


@pytest.mark.parametrize("name", REACHED)
def test_a_rate_reaches_every_dropout_of_torch(name):
    """By the definition of inverted dropout: a share `rate` is 0, the rest is 1 / (1 - rate)."""
    with DropoutRate(0.2):
        dropped = REACHED[name](ONES)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=0.05)
    torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1.25))
    with DropoutRate(0.0):
        torch.testing.assert_close(REACHED[name](ONES), ONES)
    assert float((REACHED[name](ONES) == 0).float().mean()) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("kind", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_a_rate_reaches_alpha_dropout(kind):
    with DropoutRate(0.2):
        dropped = kind(0.5)(ONES)
    assert float((dropped == dropped.min()).float().mean()) == pytest.approx(0.2, abs=0.05)
    with DropoutRate(0.0):
        assert torch.equal(kind(0.5)(ONES), ONES)


class Packed(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        lengths = torch.full((x.size(0),), x.size(1))
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)


LAYERS = {
    "LSTM": lambda rate: nn.LSTM(16, 16, 2, dropout=rate, batch_first=True),
    "GRU": lambda rate: nn.GRU(16, 16, 2, dropout=rate, batch_first=True),
    "RNN": lambda rate: nn.RNN(16, 16, 2, dropout=rate, batch_first=True),
    "RNN relu": lambda rate: nn.RNN(16, 16, 2, nonlinearity="relu", dropout=rate, batch_first=True),
    "packed LSTM": lambda rate: Packed(nn.LSTM(16, 16, 2, dropout=rate, batch_first=True)),
    "packed GRU": lambda rate: Packed(nn.GRU(16, 16, 2, dropout=rate, batch_first=True)),
    "MultiheadAttention": lambda rate: SelfAttention(16, 2, dropout=rate, batch_first=True),
    "TransformerEncoderLayer": lambda rate: nn.TransformerEncoderLayer(16, 2, 24, dropout=rate, batch_first=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_rate_on_a_layer_of_torch_is_the_layer_built_with_that_rate(name):
    low, high, x = LAYERS[name](0.1), LAYERS[name](0.4), torch.randn(4, 7, 16)
    high.load_state_dict(low.state_dict())

    def ran(layer):
        torch.manual_seed(2)
        out = layer(x)
        return out[0] if isinstance(out, tuple) else out

    with DropoutRate(0.4):
        ours = ran(low)
    assert torch.equal(ours, ran(high))
    assert not torch.equal(ours, ran(low))
    with DropoutRate(0.0):
        ours = ran(low)
    torch.testing.assert_close(ours, ran(low.eval()), rtol=1e-5, atol=1e-6)


def test_probabilities_of_the_models_own_are_left_alone():
    p = torch.tensor([0.1, 0.9]).expand(20_000, 2)
    with DropoutRate(0.5):
        drawn = torch.bernoulli(p)
    torch.testing.assert_close(drawn.mean(0), p[0], rtol=0, atol=0.02)
    with DropoutRate(0.5):
        assert torch.equal(torch.ones(9).bernoulli_(1.0), torch.ones(9))
        assert set(torch.empty(99, dtype=torch.bool).bernoulli_(0.5).tolist()) == {True, False}


# -- what it does not reach is refused -------------------------------------------------------------------------------


class Rows(nn.Module):
    """Inverted dropout of whole steps, drawn by torch.rand."""

    def forward(self, x):
        return x * (torch.rand(*x.shape[:2], 1) > 0.5) / 0.5 if self.training else x


class Rarely(nn.Module):
    """Leaves a layer out, one time in five: two passes often agree."""

    def __init__(self, rate=0.2):
        super().__init__()
        self.linear, self.rate = nn.Linear(16, 16), rate

    def forward(self, x):
        draw = torch.rand([])
        return x if self.training and draw < self.rate else x + self.linear(x)


class DropMask(nn.Module):
    """Draws what is dropped and not what is kept, so that another rate is another thing."""

    def forward(self, x):
        return x.masked_fill(torch.empty_like(x).bernoulli_(0.3).bool(), 0.0) / 0.7 if self.training else x


class Always(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


RATES = rat(dropouts=(0.1, 0.3))


def batch_of_own():
    return {name: value for name, value in tiny_batch().items() if name != "attention_mask"}


@pytest.mark.parametrize(
    ("inner", "regularizer", "seen"),
    [
        (Rows, RATES, "draws what no rate reaches"),
        (Rarely, RATES, "draws what no rate reaches"),
        (lambda: nn.RReLU(), RATES, "draws what no rate reaches"),
        (DropMask, RATES, "at rate 0 is not what it is in evaluation mode"),
        (Always, RATES, "is random in evaluation mode too"),
        (Always, expectation_linear(), "is random in evaluation mode too"),
    ],
)
def test_a_rate_that_misses_is_refused(inner, regularizer, seen):
    torch.manual_seed(0)
    model = Own(inner(), nn.Dropout(0.1)).train()
    before, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    with pytest.raises(ValueError, match=f"Own .*{seen}") as error:
        Regularization(regularizer, model).backward(batch_of_own())
    assert "\n" not in str(error.value)
    assert repr(regularizer) in str(error.value)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("inner", "regularizer"),
    [
        *((LAYERS[name], RATES) for name in ("LSTM", "TransformerEncoderLayer")),
        (lambda rate: nn.AlphaDropout(rate), RATES),
        (lambda rate: Rarely(0.0), RATES),  # it draws, and does nothing with it
        (lambda rate: nn.Sequential(nn.Dropout(rate), Normalized()), RATES),
        (lambda rate: Rows(), expectation_linear()),
        (lambda rate: Rarely(), expectation_linear()),
        (lambda rate: DropMask(), expectation_linear()),
    ],
)
def test_a_look_leaves_no_trace(inner, regularizer):
    """The same losses, gradients and buffers as if nobody had looked."""
    found = []
    for looked in (False, True):
        torch.manual_seed(0)
        model = Own(inner(0.1), nn.Dropout(0.1)).train()
        regularization = Regularization(regularizer, model)
        if not looked:
            regularization._require_rates = lambda inputs: None
        torch.manual_seed(4)
        losses = regularization.backward(batch_of_own())
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([*losses.values(), *gradients, *model.buffers(), torch.get_rng_state()])
        assert all(module.training for module in model.modules())
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_it_looks_once():
    model, runs = Own(nn.Dropout(0.1)).train(), []
    model.register_forward_hook(lambda *args: runs.append(1))
    regularization = Regularization(RATES, model)
    counts = []
    for _ in range(3):
        runs.clear()
        regularization.backward(batch_of_own())
        counts.append(len(runs))
    assert counts == [5, 3, 3]  # one in evaluation and one at rate 0, since neither draws anything

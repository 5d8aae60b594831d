"""Dropout in evaluation: on any model, only what drops out acts as in training."""

import pytest
import torch
from tiny import FAMILIES, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F

from hf_rat.models import RNNConfig, RNNForSequenceClassification
from hf_rat.passes.dropout import DropoutRate, RandomState
from hf_rat.passes.dropping_out import dropping_out, find_dropout


def logits(model, batch, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        found = model(**batch)
    return found["logits"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_is_that_of_training(family):
    """These models have nothing but dropout that differs: in training and here, the same numbers give the same."""
    model, batch = tiny_model(family, dropout=0.3), tiny_batch()
    model.eval()
    plain = logits(model, batch)
    found = find_dropout(model, batch, "test")
    assert not any(module.training for module in model.modules())
    with dropping_out(found):
        on = logits(model, batch)
        with DropoutRate(0.0):
            torch.testing.assert_close(logits(model, batch), plain)
    assert not any(module.training for module in model.modules())
    assert not torch.allclose(on, plain)
    torch.testing.assert_close(on, logits(model.train(), batch), rtol=0, atol=0)


@pytest.mark.parametrize(
    "rates", [{"zoneout": 0.3}, {"dropconnect": 0.3}, {"variational": 0.3}, {"recurrent": 0.3}, {"layers": 0.3}]
)
def test_recurrent_dropouts(rates):
    config = RNNConfig(
        vocab_size=60, embedding_size=4, hidden_size=4, num_hidden_layers=2, num_labels=3, recurrent_dropouts=rates
    )
    model, batch = RNNForSequenceClassification(config).eval(), tiny_batch()
    plain = logits(model, batch)
    with dropping_out(find_dropout(model, batch, "test")):
        on = logits(model, batch)
    assert not torch.allclose(on, plain)
    torch.testing.assert_close(on, logits(model.train(), batch), rtol=0, atol=0)


class Centred(nn.Module):
    """A normalisation of a user's own: by the batch in training, and nothing tells what it is."""

    def forward(self, x):
        return x - x.mean(0) if self.training else 0.5 * x


class Net(nn.Module):
    """Dropout in a function, beside what normalises by the batch."""

    def __init__(self, rate=0.5, norm=None, by_numpy=False):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16), norm or nn.Identity(), nn.Linear(16, 3)
        self.rate, self.by_numpy = rate, by_numpy

    def forward(self, x, labels=None):
        h = self.norm(self.first(x))
        if self.by_numpy:
            import numpy as np

            keep = (np.random.rand(*h.shape) > 0.5) if self.training else 1.0
            h = h * torch.as_tensor(keep, dtype=h.dtype)
        return {"logits": self.last(F.dropout(h, self.rate, self.training))}


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(16), nn.BatchNorm1d(16, track_running_stats=False), Centred()])
@pytest.mark.parametrize("size", [1, 5])
def test_what_normalises_by_the_batch_stays_in_evaluation(norm, size):
    torch.manual_seed(1)
    model, batch = Net(norm=norm).eval(), {"x": torch.randn(size, 6)}
    if size == 1 and isinstance(norm, nn.BatchNorm1d) and not norm.track_running_stats:
        pytest.skip("it cannot normalise one example")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask_free = logits(model, batch)
    found = find_dropout(model, batch, "test")
    assert found == [model], "and neither the norm nor the linear layers"
    hidden = model.norm(model.first(batch["x"]))
    with dropping_out(found):
        on = logits(model, batch, seed=3)
    torch.manual_seed(3)
    torch.testing.assert_close(on, model.last(F.dropout(hidden, 0.5)))
    torch.testing.assert_close(logits(model, batch), mask_free)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_numpy_draws_is_seen():
    model = Net(rate=0.0, by_numpy=True).eval()
    assert find_dropout(model, {"x": torch.randn(5, 6)}, "test") == [model]


def test_a_look_leaves_no_trace():
    model, batch = Net(norm=nn.BatchNorm1d(16)).train(), {"x": torch.randn(5, 6)}
    model.first.eval()
    modes, before = [module.training for module in model.modules()], RandomState(torch.device("cpu"))
    find_dropout(model, batch, "test")
    assert [module.training for module in model.modules()] == modes
    assert RandomState(torch.device("cpu")) == before
    assert model.norm.num_batches_tracked == 0
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_a_model_without_dropout_is_refused():
    with pytest.raises(ValueError, match=r"^--mc_samples 5: Net has no dropout"):
        find_dropout(Net(rate=0.0), {"x": torch.randn(5, 6)}, "--mc_samples 5")
    bart = tiny_model("bart", dropout=0.0)  # draws for layers that are never dropped
    with pytest.raises(ValueError, match="has no dropout"):
        find_dropout(bart, tiny_batch(), "test")


def test_dropout_that_cannot_be_switched_on_alone_is_refused():
    class ByFunction(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.last = nn.Dropout(0.5), nn.Linear(6, 3)

        def forward(self, x):
            return {"logits": self.last(self.drop.forward(x))}

    with pytest.raises(ValueError, match="cannot be switched on alone"):
        find_dropout(ByFunction(), {"x": torch.randn(5, 6)}, "test")

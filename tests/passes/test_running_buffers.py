"""Running statistics are updated once per batch, by the clean pass, never by searches or recomputations."""

import pytest
import torch
from runs import SETTINGS
from test_dropout_rates import Normalized, Own
from tiny import assert_same_gradients, gradients, tiny_batch
from torch import nn

from hf_rat import Regularization, rdrop
from hf_rat.passes.running_buffers import RunningBuffers
from hf_rat.regularizers import parse

pytestmark = pytest.mark.filterwarnings("ignore:.*has no dropout")

OWN_SITES = ("recurrent", "sentence", "inner.")
RECIPES = [name for name in SETTINGS if not any(word in name for word in OWN_SITES)]


class Average(nn.Module):
    """A running mean of one's own, bound anew in each forward, which no list of classes knows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(16))

    def forward(self, x):
        if self.training:
            self.average = 0.5 * self.average + 0.5 * x.detach().mean((0, 1))
        return x - self.average


def model_with(*inner):
    return Own(nn.Dropout(0.3), *inner).train()


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("expression", RECIPES)
def test_every_recipe_updates_once_per_batch(expression, memory):
    model, batch = model_with(Normalized()), tiny_batch()
    norm = model.inner[1]
    regularization = Regularization(parse(expression), model, memory=memory)
    for step in range(3):
        seen = []
        hook = norm.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))  # noqa: B023
        before, counted = norm.running_mean.clone(), int(norm.num_batches_tracked)
        regularization.backward(batch, step=step)
        hook.remove()
        assert int(norm.num_batches_tracked) == counted + 1
        # running <- 0.9 running + 0.1 mean of what it saw in one of its passes: the first, but for looks and searches.
        updates = [0.9 * before + 0.1 * x.mean((0, 1)) for x in seen]
        assert any(torch.allclose(norm.running_mean, update, atol=1e-6) for update in updates)
        model.zero_grad()
    regularization.close()


@pytest.mark.parametrize("expression", ["fgm", "vat", "pgd", "smart", "r3f", "pi_model", "expectation_linear"])
def test_the_statistics_are_those_of_the_clean_pass(expression):
    """Without dropout before the normalisation, what plain training makes of them."""
    states = {}
    for name in ("plain", expression):
        model = Own(Normalized(), nn.Dropout(0.3)).train()
        regularization = Regularization(parse(name), model)
        for step in range(2):
            regularization.backward(tiny_batch(seed=step), step=step)
        states[name] = dict(model.named_buffers())
    for name, buffer in states["plain"].items():
        torch.testing.assert_close(states[expression][name], buffer)
    assert int(states["plain"]["inner.0.num_batches_tracked"]) == 2


@pytest.mark.parametrize(
    "inner",
    [
        lambda: [Normalized()],
        lambda: [nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))],
        lambda: [Average(), nn.Linear(16, 16)],
    ],
    ids=["batch norm", "spectral norm", "own"],
)
def test_lean_memory_has_the_gradients_of_passes_one_by_one(inner):
    """The hand-written loop: two passes, each from the buffers of the batch's beginning or the first one's end."""
    found = {}
    for memory in ("lean", "by hand"):
        torch.manual_seed(2)
        model, batch = model_with(*inner()), tiny_batch()
        torch.manual_seed(3)
        if memory == "lean":
            regularization = Regularization(rdrop(alpha=0.7), model, memory="lean")
            regularization.backward(batch)
        else:
            first = model(**batch)
            kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
            second = model(**batch)
            p, q = (torch.log_softmax(out.logits, -1) for out in (first, second))
            bi_kl = 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()
            (0.5 * (first.loss + second.loss) + 0.7 * bi_kl).backward()
            for name, buffer in model.named_buffers():
                buffer.data.copy_(kept[name])
        found[memory] = gradients(model), dict(model.named_buffers())
    assert_same_gradients(found["lean"][0], found["by hand"][0])
    for name, buffer in found["by hand"][1].items():
        torch.testing.assert_close(found["lean"][1][name], buffer)


def test_a_model_without_them_is_looked_at_once(monkeypatch):
    model, copied = Own(nn.Dropout(0.3)).train(), []
    model.register_buffer("position_ids", torch.arange(9))
    buffers = RunningBuffers(model)
    for _ in range(3):
        with buffers.keep():
            copied.append(len(buffers.copies()))
            model(**tiny_batch())
    assert copied == [1, 0, 0]


def test_a_frozen_normalisation_that_thaws_is_seen():
    model, batch = model_with(Normalized()), tiny_batch()
    norm = model.inner[1].eval()
    buffers = RunningBuffers(model)
    with buffers.update():
        model(**batch)
    norm.train()
    before = norm.running_mean.clone()
    with buffers.keep():
        model(**batch)
    assert torch.equal(norm.running_mean, before)
    with buffers.at_rate(0.0):
        assert [module for module in model.modules() if module.training] == [norm]


def test_buffers_come_back_after_an_error():
    model = model_with(Average())
    average = model.inner[1].average
    buffers = RunningBuffers(model)
    model.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError), buffers.keep():
        model(**tiny_batch())
    assert model.inner[1].average is average
    assert not average.any()


def test_a_buffer_that_two_modules_share_is_one():
    one, other = Normalized(), Normalized()
    other._buffers["running_mean"] = one.running_mean
    model = model_with(one, other)
    before = one.running_mean.clone()
    with RunningBuffers(model).keep():
        assert one.running_mean is other.running_mean
        model(**tiny_batch())
    assert one.running_mean is other.running_mean
    assert torch.equal(one.running_mean, before)

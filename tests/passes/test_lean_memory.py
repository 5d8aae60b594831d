"""Lean memory: the same losses and gradients, one pass's activations at a time, and its price is told."""

import weakref

import keyed
import pytest
import runs
import tiny
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_rat import Regularization, parse
from hf_rat.engine.cost import rehearse
from hf_rat.passes import point as points

# noisy_tune moves the weights once and for all, so that a second run of one model begins elsewhere.
EVERY = [*(text for name, text in runs.SETTINGS.items() if name != "noisy_tune"), *runs.COMPOSED]


def gradients_of(expression, memory, model, **options):
    inputs = runs.collate(runs.examples(12))
    model.zero_grad()
    one = Regularization(parse(expression), model, memory=memory, **options)
    with keyed.noise(), keyed.by_bucket():
        keyed.begin(inputs["input_ids"], inputs["attention_mask"])
        losses = one.backward(inputs)
    one.close()
    return losses, tiny.gradients(model)


@pytest.mark.parametrize("single_backward", [False, True])
@pytest.mark.parametrize("expression", EVERY)
def test_lean_changes_nothing(expression, single_backward, monkeypatch):
    model = tiny.tiny_model(dropout=0.1, _attn_implementation="eager")
    lean, of_lean = gradients_of(expression, "lean", model, single_backward=single_backward)
    # The same passes in the same order, all kept. (As one batch they would draw other masks.)
    monkeypatch.setattr(points, "checkpoint", lambda run, *args, use_reentrant: run(*args))
    kept, of_kept = gradients_of(expression, "lean", model, single_backward=single_backward)
    assert lean.keys() == kept.keys()
    for name, value in kept.items():
        torch.testing.assert_close(lean[name], value, rtol=1e-5, atol=1e-6)
    tiny.assert_same_gradients(of_lean, of_kept)


def test_lean_keeps_torchs_own_masks():
    """Without keyed dropout, too: a pass that runs again draws the masks that it drew. Finite differences of the loss
    under these masks say so."""
    model, inputs = tiny.tiny_model(dropout=0.3).double(), tiny.tiny_batch()
    weight = model.classifier.weight

    def loss(backward):
        torch.manual_seed(3)
        model.zero_grad()
        one = Regularization(parse("rdrop(alpha=2, passes=3)"), model, memory="lean")
        named = one.backward(inputs) if backward else one.losses(inputs)
        return torch.stack([value.detach() for value in named.values()]).sum().item()

    loss(backward=True)
    slope, size = weight.grad.clone(), 1e-3
    for where in ((0, 0), (1, 5), (2, 3)):
        with torch.no_grad():
            weight[where] += size
            up = loss(backward=False)
            weight[where] -= 2 * size
            down = loss(backward=False)
            weight[where] += size
        assert slope[where].item() == pytest.approx((up - down) / (2 * size), rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("expression", ["rdrop", "rat(epsilon=0.5)"])
def test_lean_shows_torch_the_device_whose_masks_are_drawn_again(expression, monkeypatch):
    """torch restores the generators of the devices that it finds among the arguments of `checkpoint`, and no others:
    masks drawn on a GPU would be other ones in the backward."""
    seen = []

    def spy(run, *args, use_reentrant):
        seen.append([leaf.device for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)])
        return run(*args)

    monkeypatch.setattr(points, "checkpoint", spy)
    batch = tiny.tiny_batch()
    Regularization(parse(expression), tiny.tiny_model(dropout=0.1), memory="lean").backward(batch)
    assert seen
    assert all(batch["input_ids"].device in devices for devices in seen)


class Wide(nn.Module):
    """A classifier whose passes hold far more than its weights: 400 numbers for each token."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.output = nn.Embedding(10, 4), nn.Linear(4, 400), nn.Linear(400, 2)
        self.dropout = nn.Dropout(0.5)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, labels=None):
        hidden = self.hidden(self.embedding(input_ids))
        for _ in range(6):
            hidden = torch.tanh(self.dropout(hidden))
        logits = self.output(hidden.mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Peak(TorchDispatchMode):
    """The most memory that the results of operators took up at a time, in bytes."""

    def __init__(self):
        super().__init__()
        self.held = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor._base is None and tensor.untyped_storage().nbytes():
                size = tensor.untyped_storage().nbytes()
                self.held += size
                self.most = max(self.most, self.held)
                weakref.finalize(tensor.untyped_storage(), self._released, size)
        return out

    def _released(self, size):
        self.held -= size


@pytest.mark.parametrize("expression", ["rdrop", "rdrop(passes=3)", "rat(epsilon=0.5)", "rat(epsilon=0.5, passes=3)"])
def test_lean_holds_one_pass(expression, monkeypatch):
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(10, (16, 32)), "labels": torch.randint(2, (16,))}

    def peak(regularizer, memory):
        one = Regularization(parse(regularizer), Wide(), memory=memory)
        one.backward(batch)
        with Peak() as counted:
            one.backward(batch)
        return counted.most

    plain, lean, fast = peak("fgm", "fast"), peak(expression, "lean"), peak(expression, "fast")
    assert lean < 1.2 * plain
    assert fast > 1.6 * plain
    monkeypatch.setattr(points, "checkpoint", lambda run, *args, use_reentrant: run(*args))
    assert peak(expression, "lean") > 1.6 * plain  # what it spares is what the checkpoint spares


@pytest.mark.parametrize(
    ("expression", "memory", "forwards", "graphs"),
    [
        ("rat", "fast", 3, 2),
        ("rat", "lean", 4, 1),
        ("rdrop(passes=3)", "fast", 3, 3),
        ("rdrop(passes=3)", "lean", 5, 1),
        ("fgm", "lean", 2, 1),
    ],
)
def test_the_price_is_told(expression, memory, forwards, graphs):
    cost = Regularization(parse(expression), tiny.tiny_model(dropout=0.1), memory=memory).cost()
    assert (cost.forwards, cost.graphs) == (forwards, graphs)


def test_plain_costs_once():
    assert rehearse(parse("plain"), 0).time == pytest.approx(1)


def test_what_is_neither_is_refused():
    with pytest.raises(ValueError, match="memory='low' must be one of fast, lean"):
        Regularization(parse("rat"), tiny.tiny_model(dropout=0.1), memory="low")

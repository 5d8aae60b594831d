"""The Hessian's products, eigenvalues and trace beside the exact one; the worst loss of a ball in closed form."""

import copy

import numpy as np
import pytest
import torch
from tiny import tiny_batch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForSequenceClassification, BertConfig

from hf_rat.analysis.hessian import Hessian, top_eigenvalues, trace
from hf_rat.analysis.sharpness import sharpness
from hf_rat.analysis.unchanged import unchanged
from hf_rat.models import RNNConfig, TextCNNConfig

WORDS = {"vocab_size": 12, "pad_token_id": 0, "num_labels": 3, "initializer_range": 0.5}
CONFIGS = {
    "textcnn": TextCNNConfig(**WORDS, embedding_size=4, num_filters=3, kernel_sizes=[2, 3]),
    "gru": RNNConfig(**WORDS, embedding_size=4, hidden_size=4, cell="gru"),
    "bert": BertConfig(
        **WORDS,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4,
        max_position_embeddings=8,
    ),
}


class Attends(nn.Module):
    """A user's own, with torch's fused attention."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(12, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask, labels):
        x = self.table(input_ids).unsqueeze(1)
        x = nn.functional.scaled_dot_product_attention(x, x, x, attention_mask.bool()[:, None, None]).squeeze(1)
        return {"loss": nn.functional.cross_entropy(self.head(x.mean(1)), labels)}


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        return slope * (1 - ctx.saved_tensors[0].tanh().square())


class OnlyOnce(Attends):
    """One whose function has first derivatives only; `plain` has the same values and all of them."""

    plain = False

    def forward(self, input_ids, attention_mask, labels):
        x = self.table(input_ids)
        x = x.tanh() if self.plain else Once.apply(x)
        return {"loss": nn.functional.cross_entropy(self.head(x.mean(1)), labels)}


def made(kind):
    torch.manual_seed(0)
    own = {"attends": Attends, "once": OnlyOnce}
    model = (
        own[kind]() if kind in own else AutoModelForSequenceClassification.from_config(copy.deepcopy(CONFIGS[kind]))
    )
    model = model.double().train()
    assert sum(p.numel() for p in model.parameters()) < 500
    return model


def batches():
    found = [tiny_batch(4, 6), tiny_batch(2, 5, seed=1)]
    return [{**batch, "input_ids": batch["input_ids"] % 12} for batch in found]


def exact(model):
    """By torch.autograd.functional, of all weights in one vector, on plain attention and the plain recursion."""
    names, weights = zip(*model.named_parameters(), strict=True)
    flat = torch.cat([w.detach().flatten() for w in weights])
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(module, "double_backward"):
            module.double_backward = True

    def loss(vector):
        parts = vector.split([w.numel() for w in weights])
        moved = {name: x.view_as(w) for name, x, w in zip(names, parts, weights, strict=True)}
        losses = [torch.func.functional_call(model, moved, (), batch)["loss"] for batch in batches()]
        return (4 * losses[0] + 2 * losses[1]) / 6

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, flat).numpy()


@pytest.fixture(scope="module")
def found():
    """kind -> the exact Hessian."""
    made_ones = {}

    def of(kind):
        if kind not in made_ones:
            model = made(kind).eval()
            model.plain = True
            made_ones[kind] = exact(model)
        return made_ones[kind]

    return of


@pytest.mark.parametrize("kind", [*CONFIGS, "attends"])
def test_products_are_those_of_the_exact_hessian(kind, found):
    model, h = made(kind), found(kind)
    assert np.allclose(h, h.T, atol=1e-12)
    vector = np.random.default_rng(1).standard_normal(len(h))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with unchanged(model):
        double, differences = (
            Hessian(model, batches(), say=pytest.fail),
            Hessian(model, batches(), "central differences"),
        )
        assert double.way == "double backward"
        assert np.allclose(double.product(vector), h @ vector, rtol=1e-9, atol=1e-10)
        scale = np.abs(h @ vector).max()
        assert np.abs(differences.product(vector) - h @ vector).max() < 1e-5 * scale
        assert not differences.product(np.zeros(len(h))).any()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(getattr(module, "double_backward", False) for module in model.modules())
    if kind == "bert":
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", CONFIGS)
def test_eigenvalues_and_trace(kind, found):
    model, h = made(kind), found(kind)
    with unchanged(model):
        hessian = Hessian(model, batches())
        values, vectors = top_eigenvalues(hessian, 3, tolerance=1e-9)
        assert np.allclose(values, np.linalg.eigvalsh(h)[::-1][:3], rtol=1e-7)
        assert np.allclose(h @ vectors, vectors * values, atol=1e-6)
        plain, spread = trace(hessian, 20)
        better, less = trace(hessian, 20, known=(values, vectors))
        whole, nothing = trace(hessian, 2, known=tuple(np.linalg.eigh(h)))
    assert abs(plain - np.trace(h)) < 4 * spread
    assert abs(better - np.trace(h)) < 4 * less
    assert whole == pytest.approx(np.trace(h), rel=1e-9)
    assert nothing < 1e-9


def test_one_that_has_first_derivatives_only(found):
    model, told = made("once"), []
    with unchanged(model):
        hessian = Hessian(model, batches(), say=told.append)
        values, _ = top_eigenvalues(hessian, 2, tolerance=1e-6)
    assert hessian.way == "central differences"
    assert len(told) == 1
    assert "OnlyOnce has no second derivatives" in told[0]
    assert np.allclose(values, np.linalg.eigvalsh(found("once"))[::-1][:2], rtol=1e-4)


class Slope(nn.Module):
    """L = c . w, whose worst loss in a ball is known: c . w + radius sum_t ||w_t|| ||c_t||."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([[1.0, 2.0]])), nn.Parameter(torch.tensor([3.0]))

    def forward(self, labels):
        return {"loss": 4.0 * self.a[0, 0] - 3.0 * self.a[0, 1] + 2.0 * self.b[0]}


class Bowl(Slope):
    """L = a_1^2 + 5 a_2^2 + b^2 + 10."""

    def forward(self, labels):
        return {"loss": self.a[0, 0] ** 2 + 5 * self.a[0, 1] ** 2 + self.b[0] ** 2 + 10.0}


def test_the_worst_loss_of_a_ball():
    one = [{"labels": torch.zeros(2)}]
    found = sharpness(Slope(), one, radius=0.1, eigenvalues=1)
    assert found.loss == pytest.approx(4.0)
    assert found.worst_loss == pytest.approx(4.0 + 0.1 * (5**0.5 * 5.0 + 3.0 * 2.0), rel=1e-5)
    assert found.rise == pytest.approx(100 * (found.worst_loss - 4.0) / 5.0)
    bowl = Bowl()
    found = sharpness(bowl, one, radius=0.5, eigenvalues=2, probes=100)
    angles = torch.linspace(0, 2 * torch.pi, 100001)
    edge = 0.5 * 5**0.5
    on_the_edge = (1 + edge * angles.cos()) ** 2 + 5 * (2 + edge * angles.sin()) ** 2
    assert found.worst_loss == pytest.approx(float(on_the_edge.max()) + 4.5**2 + 10.0, rel=1e-4)
    assert found.eigenvalues == pytest.approx([10.0, 2.0])
    assert abs(found.trace - 14.0) < 4 * found.trace_error
    assert (found.weights, found.products) == (3, "double backward")
    assert bowl.a.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"radius": 0.0}, "radius=0.0"),
        ({"radius": float("nan")}, "radius=nan"),
        ({"steps": 0}, "steps=0"),
        ({"eigenvalues": 3}, "count=3"),
        ({"probes": 1}, "probes=1"),
        ({"way": "forward"}, "way='forward'"),
    ],
)
def test_what_is_refused(setting, words):
    model = Bowl().train()
    with pytest.raises(ValueError, match=words):
        sharpness(model, [{"labels": torch.zeros(2)}], **{"eigenvalues": 1, **setting})
    assert model.training

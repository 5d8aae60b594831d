"""Divergences: laws that hold by definition, and scipy's numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, softmax
from scipy.stats import entropy
from torch.utils._python_dispatch import TorchDispatchMode

from hf_rat.passes.problems import PROBLEM_TYPES
from hf_rat.regularizers import divergences
from hf_rat.regularizers.divergences import NAMES, diverge

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Every divergence of two probability vectors, by scipy or numpy in float64; that of raw outputs is of the outputs.
BY_SCIPY = {
    "ce": lambda p, q: entropy(p, q) + entropy(p),
    "mae": lambda p, q: np.abs(p - q).mean(),
    "mse": lambda p, q: np.square(p - q).mean(),
    "kl": lambda p, q: entropy(p, q),
    "reverse_kl": lambda p, q: entropy(q, p),
    "js": lambda p, q: jensenshannon(p, q) ** 2,
    "bi_kl": lambda p, q: (entropy(p, q) + entropy(q, p)) / 2,
    "logit_mse": lambda z, w: np.square(z - w).mean(),
}


def categorical(name, z, w):
    """The divergence of two rows of logits, by its formula in float64."""
    return BY_SCIPY[name](z, w) if name == "logit_mse" else BY_SCIPY[name](softmax(z), softmax(w))


def test_every_divergence_has_its_formula():
    here = Path(__file__).relative_to(Path(__file__).parents[2])
    without = NAMES.keys() - BY_SCIPY.keys()
    assert not without, f"{', '.join(without)}: write the formula, by scipy or numpy, in BY_SCIPY of {here}"


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_scipy_on_every_example(name):
    z, w = logits(20, 5, seed=1), logits(20, 5, seed=2)
    expected = [categorical(name, a, b) for a, b in zip(z.double().numpy(), w.double().numpy(), strict=True)]
    torch.testing.assert_close(diverge(name, z, w, SINGLE), torch.tensor(expected).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_multi_label_is_one_bernoulli_per_label(name):
    z, w = logits(6, 4, seed=1), logits(6, 4, seed=2)

    def bernoulli(a, b):
        if name == "logit_mse":
            return np.square(a - b)
        # softmax([a, 0]) is (sigmoid(a), 1 - sigmoid(a)), the distribution of label present and label absent.
        assert np.isclose(softmax([a, 0.0])[0], expit(a))
        return categorical(name, np.array([a, 0.0]), np.array([b, 0.0]))

    expected = [
        np.mean([bernoulli(a, b) for a, b in zip(row, other, strict=True)])
        for row, other in zip(z.double().numpy(), w.double().numpy(), strict=True)
    ]
    torch.testing.assert_close(diverge(name, z, w, MULTI), torch.tensor(expected).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_the_squared_difference_on_a_regression(name):
    z, w = logits(6, 2, seed=1), logits(6, 2, seed=2)
    torch.testing.assert_close(diverge(name, z, w, REGRESSION), ((z - w) ** 2).mean(-1))


@pytest.mark.parametrize("problem", PROBLEM_TYPES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "ce"])
def test_zero_on_equals_and_never_negative(name, problem):
    z = logits(50, 4, seed=1, scale=10)
    torch.testing.assert_close(diverge(name, z, z, problem), torch.zeros(50), rtol=0, atol=1e-6)
    assert (diverge(name, z, logits(50, 4, seed=2, scale=10), problem) >= 0).all()
    assert (diverge(name, z, z + 1e-4 * logits(50, 4, seed=3), problem) >= -1e-6).all()


@pytest.mark.parametrize("problem", PROBLEM_TYPES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "ce"])
def test_no_slope_at_all_on_equals(name, problem):
    """To the last bit: a search must not climb rounding errors."""
    z = logits(50, 4, seed=1, scale=10)
    w = z.clone().requires_grad_()
    diverge(name, z, w, problem).sum().backward()
    assert not w.grad.any()


def test_soft_cross_entropy_of_equals_is_the_entropy():
    z = logits(9, 4)
    torch.testing.assert_close(diverge("ce", z, z, SINGLE), torch.tensor(entropy(softmax(z, axis=-1), axis=-1)))


@pytest.mark.parametrize("name", NAMES)
def test_symmetric_exactly_where_the_formula_is(name):
    z, w = logits(8, 4, seed=1), logits(8, 4, seed=2)
    symmetric = torch.allclose(diverge(name, z, w, SINGLE), diverge(name, w, z, SINGLE), rtol=1e-5, atol=1e-6)
    p, q = (x[0].double().numpy() for x in (z, w))
    assert symmetric == np.isclose(categorical(name, p, q), categorical(name, q, p))


@pytest.mark.parametrize("name", NAMES)
def test_a_shift_of_all_logits_changes_distributions_nowhere(name):
    z, w = logits(8, 4, seed=1), logits(8, 4, seed=2)
    same = torch.allclose(diverge(name, z + 5, w, SINGLE), diverge(name, z, w, SINGLE), rtol=1e-4, atol=1e-5)
    assert same == (name != "logit_mse")


@pytest.mark.parametrize("problem", PROBLEM_TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_compared_in_fp32(name, problem):
    z, w = logits(8, 4, seed=1).bfloat16(), logits(8, 4, seed=2).bfloat16()
    ours = diverge(name, z, w, problem)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, diverge(name, z.float(), w.float(), problem), rtol=0, atol=0)


@pytest.mark.parametrize("problem", PROBLEM_TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_stay_finite_with_finite_gradients(name, problem):
    z = torch.tensor([[200.0, -200.0, 0.0], [-90.0, 90.0, 90.0]], requires_grad=True)
    w = torch.tensor([[-200.0, 200.0, 0.0], [90.0, -90.0, 90.0]], requires_grad=True)
    value = diverge(name, z, w, problem).sum()
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(w.grad).all()


# -- over a large vocabulary -----------------------------------------------------------------------------------------


@pytest.fixture
def chunks(monkeypatch):
    """Outputs of more than 12 entries are compared in chunks."""
    monkeypatch.setattr(divergences, "CHUNK", 12)


def with_gradients(name, z, w, problem, keep=None):
    """Values and both gradients, under slopes that differ from position to position."""
    z, w = z.clone().requires_grad_(), w.clone().requires_grad_()
    values = diverge(name, z, w, problem, keep)
    slopes = 1 + torch.arange(values.numel()).view(values.shape)
    return values.detach(), *torch.autograd.grad((slopes * values).sum(), [z, w])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("problem", PROBLEM_TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_in_chunks_it_is_the_dense_formula(name, problem, dtype, monkeypatch):
    z, w = logits(3, 5, 7, seed=1).to(dtype), logits(3, 5, 7, seed=2).to(dtype)
    dense = with_gradients(name, z, w, problem)
    for chunk in (1, 12, 40):  # less than a row, one row, several rows
        monkeypatch.setattr(divergences, "CHUNK", chunk)
        for ours, expected in zip(with_gradients(name, z, w, problem), dense, strict=True):
            assert ours.dtype == expected.dtype
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [12, divergences.CHUNK])
@pytest.mark.parametrize("name", NAMES)
def test_a_position_that_is_not_kept_is_zero_whatever_its_logits(name, chunk, monkeypatch):
    monkeypatch.setattr(divergences, "CHUNK", chunk)
    keep = torch.tensor([[True, False, True], [False, False, True]])
    z, w = logits(2, 3, 4, seed=1), logits(2, 3, 4, seed=2)
    expected = [diverge(name, a, b, SINGLE) if kept else torch.tensor(0.0)
                for a, b, kept in zip(z.flatten(0, 1), w.flatten(0, 1), keep.flatten(), strict=True)]  # fmt: skip
    _, z_gradient, w_gradient = with_gradients(name, z, w, SINGLE)
    z[~keep], w[~keep] = float("nan"), float("inf")
    values, *gradients = with_gradients(name, z, w, SINGLE, keep)
    torch.testing.assert_close(values, torch.stack(expected).view(2, 3))
    for ours, whole in zip(gradients, (z_gradient, w_gradient), strict=True):
        torch.testing.assert_close(ours[keep], whole[keep])
        assert not ours[~keep].any()


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kept", ["all", "some"])
@pytest.mark.parametrize("name", ["logit_mse", "bi_kl", "kl", "js", "reverse_kl"])
def test_a_graph_that_is_kept_gives_each_backward_its_own_slopes(name, kept):
    z, w = logits(2, 4, 9, seed=1).requires_grad_(), logits(2, 4, 9, seed=2).requires_grad_()
    keep = torch.tensor([[True, False, True, True], [False, True, True, False]]) if kept == "some" else None
    counts = 1.0 if keep is None else keep
    values = diverge(name, z, w, SINGLE, keep)
    exact = [x.detach().double().requires_grad_() for x in (z, w)]
    dense = NAMES[name](*exact if name == "logit_mse" else (x.log_softmax(-1) for x in exact))
    for seed in (3, 4, 5):
        weights = logits(2, 4, seed=seed)
        ours = torch.autograd.grad(values, (z, w), weights, retain_graph=True)
        expected = torch.autograd.grad(dense, exact, (weights * counts).double(), retain_graph=True)
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize("name", ["bi_kl", "kl", "js"])
def test_one_gradient_where_only_one_is_asked_for(name, needs):
    pair = [
        z.requires_grad_(need) for z, need in zip((logits(4, 9, seed=1), logits(4, 9, seed=2)), needs, strict=True)
    ]
    diverge(name, *pair, SINGLE).sum().backward()
    both = with_gradients(name, *(z.detach() for z in pair), SINGLE)
    assert [z.grad is not None for z in pair] == list(needs)
    (asked,) = (z for z in pair if z.grad is not None)
    pair_of = [z.clone().requires_grad_() for z in (pair[0].detach(), pair[1].detach())]
    diverge(name, *pair_of, SINGLE).sum().backward()
    torch.testing.assert_close(asked.grad, pair_of[needs.index(True)].grad)
    assert torch.isfinite(torch.cat([z.flatten() for z in both])).all()


@pytest.mark.usefixtures("chunks")
def test_in_chunks_there_is_no_slope_at_all_on_equals_either():
    z = logits(50, 4, seed=1, scale=10)
    for name in NAMES:
        w = z.clone().requires_grad_()
        diverge(name, z, w, SINGLE).sum().backward()
        assert not w.grad.any() or name == "ce"


@pytest.mark.usefixtures("chunks")
def test_a_second_derivative_in_chunks_is_refused():
    z = logits(4, 9, seed=1).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative") as error:
        torch.autograd.grad(diverge("kl", z, logits(4, 9, seed=2), SINGLE).sum(), z, create_graph=True)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("chunks")
def test_nothing_kept_is_zero_with_zero_gradients():
    values, *gradients = with_gradients("kl", logits(4, 9), logits(4, 9, seed=1), SINGLE, torch.zeros(4).bool())
    assert not values.any()
    assert not any(gradient.any() for gradient in gradients)


class Largest(TorchDispatchMode):
    """Sizes of what was newly made, by the operation that made it."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view and not func._schema.name.endswith("_"):
            self.made.append((out.numel(), str(func)))
        return out


@pytest.mark.parametrize("name", NAMES)
def test_nothing_larger_than_a_chunk_is_made_but_the_gradients(name, monkeypatch):
    monkeypatch.setattr(divergences, "CHUNK", 2**9)
    vocabulary, positions = 2**8, 2**9
    z = logits(2, positions // 2, vocabulary, seed=1)
    w = z.flip(-1).requires_grad_()
    keep = torch.arange(positions).view(2, -1) % 3 > 0
    with Largest() as largest:
        diverge(name, z, w, SINGLE, keep).sum().backward()
    large = [(size, what) for size, what in largest.made if size > z.numel() // 32]
    assert [size for size, _ in large] == [z.numel()], large
    assert "zeros_like" in large[0][1]


# -- classes that are ruled out --------------------------------------------------------------------------------------

OPEN = torch.tensor([True, False, True, True, False, True])
RULED_OUT = [
    (torch.float32, float("-inf")),
    (torch.bfloat16, float("-inf")),
    (torch.float16, float("-inf")),
    (torch.float32, torch.finfo(torch.float32).min),
    (torch.bfloat16, torch.finfo(torch.bfloat16).min),
    (torch.float16, torch.finfo(torch.float16).min),
]


@pytest.mark.parametrize("chunk", [6, divergences.CHUNK])
@pytest.mark.parametrize(("dtype", "value"), RULED_OUT, ids=str)
@pytest.mark.parametrize("problem", PROBLEM_TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_both_rule_out_is_not_there(name, problem, dtype, value, chunk, monkeypatch):
    """Values and gradients are those over the other classes."""
    z, w = logits(3, 2, 6, seed=1).to(dtype), logits(3, 2, 6, seed=2).to(dtype)
    expected, *slopes = with_gradients(name, z[..., OPEN], w[..., OPEN], problem)
    z[..., ~OPEN], w[..., ~OPEN] = value, value
    monkeypatch.setattr(divergences, "CHUNK", chunk)
    found, *gradients = with_gradients(name, z, w, problem)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for ours, over_the_others in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(ours[..., OPEN], over_the_others)
        assert not ours[..., ~OPEN].any()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ce"])
def test_no_slope_on_equals_with_classes_ruled_out(name):
    z = logits(20, 6, seed=1, scale=10).masked_fill(~OPEN, float("-inf"))
    w = z.clone().requires_grad_()
    values = diverge(name, z, w, SINGLE)
    values.sum().backward()
    torch.testing.assert_close(values.detach(), torch.zeros(20), rtol=0, atol=1e-6)
    assert not w.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_one_side_rules_out_is_as_scipy_has_it(name):
    z, w = logits(4, 5, seed=1), logits(4, 5, seed=2)
    z[0, 1] = w[1, 2] = z[2, 0] = w[2, 3] = float("-inf")
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = [categorical(name, a, b) for a, b in zip(z.double().numpy(), w.double().numpy(), strict=True)]
    if name != "logit_mse":
        # Finite where the side that has the weight rules it out, and for bounded divergences.
        finite = {"kl": [True, False, False, True], "ce": [True, False, False, True]}
        finite |= {"reverse_kl": [False, True, False, True], "bi_kl": [False, False, False, True]}
        assert np.isfinite(expected).tolist() == finite.get(name, [True] * 4)
    torch.testing.assert_close(diverge(name, z, w, SINGLE), torch.tensor(expected).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["kl", "ce", "js", "mae", "mse"])
def test_gradients_are_finite_where_the_value_is(name):
    """The reference has no weight where it rules a class out."""
    z, w = logits(4, 5, seed=1), logits(4, 5, seed=2)
    z[0, 1] = z[2, 0] = float("-inf")
    values, *gradients = with_gradients(name, z, w, SINGLE)
    assert all(torch.isfinite(found).all() for found in (values, *gradients))


@pytest.mark.parametrize("problem", PROBLEM_TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_nan_is_never_hidden(name, problem):
    z, w = logits(3, 4, seed=1), logits(3, 4, seed=2)
    z[0, 1] = w[1, 1] = float("nan")
    assert torch.isnan(diverge(name, z, w, problem)).tolist() == [True, True, False]

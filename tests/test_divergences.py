"""Divergences: laws that hold by definition, and scipy's numbers."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, softmax
from scipy.stats import entropy

from hf_rat.regularizers.divergences import NAMES, diverge
from hf_rat.regularizers.problems import PROBLEM_TYPES

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES
SYMMETRIC = ("mae", "mse", "js", "bi_kl", "logit_mse")


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def categorical(name, z, w):
    """The divergence of two rows of logits, by scipy in float64."""
    p, q = softmax(z), softmax(w)
    return {
        "ce": lambda: entropy(p, q) + entropy(p),
        "mae": lambda: np.abs(p - q).mean(),
        "mse": lambda: np.square(p - q).mean(),
        "kl": lambda: entropy(p, q),
        "reverse_kl": lambda: entropy(q, p),
        "js": lambda: jensenshannon(p, q) ** 2,
        "bi_kl": lambda: (entropy(p, q) + entropy(q, p)) / 2,
        "logit_mse": lambda: np.square(z - w).mean(),
    }[name]()


def test_the_eight_names():
    assert set(NAMES) == {"ce", "mae", "mse", "kl", "reverse_kl", "js", "bi_kl", "logit_mse"}


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
def test_symmetric_exactly_where_it_should_be(name):
    z, w = logits(8, 4, seed=1), logits(8, 4, seed=2)
    symmetric = torch.allclose(diverge(name, z, w, SINGLE), diverge(name, w, z, SINGLE), rtol=1e-5, atol=1e-6)
    assert symmetric == (name in SYMMETRIC)


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

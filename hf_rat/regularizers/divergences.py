"""How far apart are two predictions? Every divergence here is a number per example (or per position).

A divergence compares two *distributions*, given as log-probabilities over the last axis, so that one formula serves
both kinds of classification: single-label outputs are one categorical distribution over the classes, multi-label
outputs are one Bernoulli distribution per label. `logit_mse` compares raw outputs instead, and every name means the
mean squared difference of the outputs when the task is a regression.

The first argument is the reference (the clean prediction, or the earlier pass), the second one the prediction that
is compared with it. Nothing is detached here. All arithmetic is fp32, whatever the dtype of the logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def ce(p: Tensor, q: Tensor) -> Tensor:
    """Soft cross-entropy `-sum_c p_c log q_c` = KL(p || q) + H(p): not zero where the two agree."""
    return -(p.exp() * q).sum(-1)


def mae(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the classes of `|p_c - q_c|`, on probabilities."""
    return (p.exp() - q.exp()).abs().mean(-1)


def mse(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the classes of `(p_c - q_c)^2`, on probabilities."""
    return (p.exp() - q.exp()).square().mean(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """`KL(p || q) = sum_c p_c (log p_c - log q_c)`."""
    # The two last terms sum to zero. With them the gradient at p = q is zero to the last bit, and no search ever
    # climbs rounding errors.
    return (p.exp() * (p - q) - p.exp() + q.exp()).sum(-1)


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """`KL(q || p)`: the compared prediction comes first."""
    return kl(q, p)


def js(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon: `1/2 KL(p || m) + 1/2 KL(q || m)` with `m = (p + q) / 2`."""
    # Written so that m is p to the last bit where the two agree.
    m = torch.maximum(p, q) + (torch.log1p((-(p - q).abs()).exp()) - math.log(2.0))
    return 0.5 * (kl(p, m) + kl(q, m))


def bi_kl(p: Tensor, q: Tensor) -> Tensor:
    """`1/2 [KL(p || q) + KL(q || p)]`, with the half, as in R-Drop and R-AT (SMART and R3F leave the half out)."""
    return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1)


def logit_mse(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the outputs of the squared difference of the raw outputs (before any softmax)."""
    return (p - q).square().mean(-1)


NAMES = {divergence.__name__: divergence for divergence in (ce, mae, mse, kl, reverse_kl, js, bi_kl, logit_mse)}


def diverge(name: str, p: Tensor, q: Tensor, problem: str) -> Tensor:
    """The divergence `name` between two outputs of one model.

    Args:
        name: a key of `NAMES`; on a regression every name is the mean squared difference of the outputs.
        p: reference logits (any float dtype), (batch, classes) or (batch, time, classes).
        q: logits of the same shape.
        problem: what `problems.problem_type` returned.

    Returns:
        fp32, one value per example (batch,) or position (batch, time). Multi-label: mean over the labels, as the
        binary cross-entropy of transformers is, so that alpha means the same against the task loss.
    """
    p, q = p.float(), q.float()
    if problem == "regression" or name == "logit_mse":
        return logit_mse(p, q)
    if problem == "multi_label_classification":
        return NAMES[name](_bernoulli(p), _bernoulli(q)).mean(-1)
    return NAMES[name](p.log_softmax(-1), q.log_softmax(-1))


def _bernoulli(logits: Tensor) -> Tensor:
    """Log-probabilities of label present and label absent, (..., labels, 2)."""
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)

"""How far apart two predictions are: every divergence here returns a number per example (or per position).

A function under `@divergence` is one of NAMES. It compares two *distributions*, given as log-probabilities over the
last axis, so that one formula serves both kinds of classification: single-label outputs are one categorical
distribution over the classes, multi-label outputs are one Bernoulli distribution per label. `logit_mse` compares raw
outputs instead, and on a regression every name means the mean squared difference of the outputs.

The first argument is the reference (the clean prediction, or the earlier pass), the second one the prediction that
is compared with it. A divergence detaches neither. It computes in fp32, whatever the dtype of the logits.

Where both predictions rule a class out (its logit is -inf, or the least number of its dtype), the divergence and its
gradients are those over the other classes. Where only one of the two rules a class out, KL(p || q) is infinite if q
does, as are bi_kl, reverse_kl, ce and logit_mse on their sides, and js, mae and mse are finite.

Over a large vocabulary the temporaries of a divergence would outweigh the model. There `diverge` computes it a chunk
of positions at a time (divergences_in_chunks.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_rat.passes.batch import Batch
from hf_rat.passes.problems import CTC, mean, select_outputs
from hf_rat.regularizers.divergences_in_chunks import Chunked

CHUNK = 2**18
"""Outputs with more entries than this are compared in chunks of at least this many."""

Divergence = Callable[[Tensor, Tensor], Tensor]

NAMES: dict[str, Divergence] = {}
"""name -> divergence, of every function that `divergence` decorates."""


def divergence(compare: Divergence) -> Divergence:
    """Give a divergence its function's name, by which recipes, flags and tests find it."""
    NAMES[compare.__name__] = compare
    return compare


@divergence
def ce(p: Tensor, q: Tensor) -> Tensor:
    """Soft cross-entropy `-sum_c p_c log q_c` = KL(p || q) + H(p): not zero where the two agree."""
    return -(p.exp() * q.masked_fill(p == -math.inf, 0.0)).sum(-1)


@divergence
def mae(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the classes of `|p_c - q_c|`, on probabilities."""
    return _mean(p, q, (p.exp() - q.exp()).abs())


@divergence
def mse(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the classes of `(p_c - q_c)^2`, on probabilities."""
    return _mean(p, q, (p.exp() - q.exp()).square())


@divergence
def kl(p: Tensor, q: Tensor) -> Tensor:
    """`KL(p || q) = sum_c p_c (log p_c - log q_c)`."""
    # The two last terms sum to zero. With them the gradient at p = q is zero to the last bit, and no search ever
    # climbs rounding errors.
    ratio = (p - q).nan_to_num(0.0, math.inf, 0.0)  # 0 log 0 = 0, whatever q is
    return (p.exp() * ratio - p.exp() + q.exp()).sum(-1)


@divergence
def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """`KL(q || p)`: the compared prediction comes first."""
    return kl(q, p)


@divergence
def js(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon: `1/2 KL(p || m) + 1/2 KL(q || m)` with `m = (p + q) / 2`."""
    # Written so that m is p to the last bit where the two agree.
    m = torch.maximum(p, q) + (torch.log1p((-_ratio(p, q).abs()).exp()) - math.log(2.0))
    return 0.5 * (kl(p, m) + kl(q, m))


@divergence
def bi_kl(p: Tensor, q: Tensor) -> Tensor:
    """`1/2 [KL(p || q) + KL(q || p)]`, with the half, as in R-Drop and R-AT (SMART and R3F leave the half out)."""
    return 0.5 * ((p.exp() - q.exp()) * _ratio(p, q)).sum(-1)


@divergence
def logit_mse(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the outputs of the squared difference of the raw outputs (before any softmax)."""
    return _mean(p, q, (p - q).masked_fill((p == -math.inf) & (q == -math.inf), 0.0).square())


def _ratio(p: Tensor, q: Tensor) -> Tensor:
    """`log p_c / q_c` of log-probabilities, 0 where neither has any. (A NaN among them is one in `exp` too.)"""
    return (p - q).nan_to_num(0.0, math.inf, -math.inf)


def _mean(p: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """Mean of `x` over the last axis, over what p and q do not both rule out."""
    return x.sum(-1) / ((p != -math.inf) | (q != -math.inf)).sum(-1)


def mean_divergence(batch: Batch, name: str, p: Tensor, q: Tensor) -> Tensor:
    """Mean divergence over what the task loss is a mean over: examples, or the positions that count; a scalar."""
    problem = batch.problem
    keep = batch.execution.frames(batch.inputs, p) if problem == CTC else select_outputs(problem, batch.inputs, p)
    of = None
    if batch.whole is not None and keep is not None and problem != CTC:
        of = select_outputs(problem, batch.whole.inputs, p.detach()[:1].expand(batch.whole.size, *p.shape[1:]))
    return mean(problem, diverge(name, p, q, problem, keep), keep, of)


def divergence_from(model: Callable[[dict[str, Any]], Tensor], batch: Batch, name: str, q: Tensor) -> Tensor:
    """The same from the logits of another model on the batch, which is one more forward pass without gradients."""
    batch.tally.forwards += 1
    batch.tally.searches += 1
    return mean_divergence(batch, name, model(batch.inputs), q)


def diverge(name: str, p: Tensor, q: Tensor, problem: str, keep: Tensor | None = None) -> Tensor:
    """The divergence `name` between two outputs of one model.

    Args:
        name: a key of `NAMES`; on a regression every name is the mean squared difference of the outputs.
        p: reference logits (any float dtype), (batch, classes) or (batch, time, classes).
        q: logits of the same shape.
        problem: one of `problems.PROBLEMS`.
        keep: bool, one per example or position; None keeps all. Nothing is computed where it is False.

    Returns:
        fp32, one value per example (batch,) or position (batch, time), zero where `keep` is False. Multi-label: mean
        over the labels, as the binary cross-entropy of transformers is, so that alpha means the same against the task
        loss. Outputs of more than CHUNK entries have no second derivative: asking for it is an error.
    """
    compare = partial(_compare, name, problem)
    if keep is None:
        if p.numel() <= CHUNK:
            return compare(p, q)
        keep = torch.ones(p.shape[:-1], dtype=torch.bool, device=p.device)
    where = keep.nonzero(as_tuple=True)
    if p.numel() <= CHUNK:
        values = compare(p[where], q[where])
    else:
        formula = "logit_mse" if problem == "regression" else name if problem != "multi_label_classification" else ""
        if where[0].numel() == keep.numel():
            return Chunked.apply(p, q, compare, formula, CHUNK).view(keep.shape)
        values = Chunked.apply(p, q, compare, formula, CHUNK, *where)
    return values.new_zeros(keep.shape).index_put(where, values)


def _compare(name: str, problem: str, p: Tensor, q: Tensor) -> Tensor:
    p, q = _ruled_out(p), _ruled_out(q)
    if problem == "regression" or name == "logit_mse":
        return logit_mse(p, q)
    if problem == "multi_label_classification":
        return _mean(p, q, NAMES[name](_bernoulli(p), _bernoulli(q)))
    return NAMES[name](p.log_softmax(-1), q.log_softmax(-1))


def _ruled_out(logits: Tensor) -> Tensor:
    """fp32, -inf where they are the least number of their dtype, with which models mask what cannot be."""
    return logits.float().masked_fill(logits <= torch.finfo(logits.dtype).min, -math.inf)


def _bernoulli(logits: Tensor) -> Tensor:
    """Log-probabilities of label present and label absent, (..., labels, 2)."""
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)

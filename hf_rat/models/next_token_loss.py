"""Cross-entropy over a vocabulary, without copies of the logits. It travels with a checkpoint.

Torch's makes three tensors as large as the logits (log-probabilities, their gradient, that of the logits), and on a
CPU fresh memory is what takes the time. Here only the last is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

CHUNK = 2**16
"""Logits that are looked at together: they stay in a core's cache."""


class _CrossEntropies(torch.autograd.Function):
    """-log softmax(logits)[label] of each row, 0 where the label is `ignore`; (rows,).

    It takes (..., vocabulary) logits and (rows,) labels, of all places but the last: autograd adds to a gradient in
    place, unless it is a view.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
        counts = labels != ignore
        labels = labels.where(counts, 0)
        flat = logits.flatten(0, -2)
        norms = torch.cat([flat[rows].logsumexp(-1) for rows in _chunks(flat)])
        ctx.save_for_backward(logits, labels, counts, norms)
        return (norms - flat.gather(1, labels.unsqueeze(1)).squeeze(1)).where(counts, 0.0)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, counts, norms = ctx.saved_tensors
        slopes = slopes.where(counts, 0.0).unsqueeze(1)
        if torch.is_grad_enabled():  # for second derivatives, in torch's own steps
            apart = (logits.flatten(0, -2).softmax(-1) - F.one_hot(labels, logits.size(-1))) * slopes
            return apart.view_as(logits), None, None
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        flat, towards = logits.flatten(0, -2), gradient.flatten(0, -2)
        for rows in _chunks(flat):
            torch.sub(flat[rows], norms[rows].unsqueeze(1), out=towards[rows]).exp_().mul_(slopes[rows])
        towards.scatter_add_(1, labels.unsqueeze(1), -slopes)
        if not bool(counts.all()):
            towards[~counts] = 0.0  # whatever the logits are there
        return gradient, None, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK // logits.size(1))
    return (slice(start, start + rows) for start in range(0, logits.size(0), rows))


def next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """`ForCausalLMLoss` of Transformers, and beyond small logits in fp32 on a CPU the same by the function above.

    Args:
        logits: (batch, time, vocab_size).
        labels: (batch, time) tokens, shifted here; or shift_labels, the token after each step.
        vocab_size: width of the logits.
        num_items_in_batch: what the sum is divided by. Default: the number of labels, for a mean.
        ignore_index: the label of what does not count.
        kwargs: of `ForCausalLMLoss`.
    """
    slow_memory = logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.numel() > CHUNK
    if not slow_memory or torch.compiler.is_compiling():
        more: dict[str, Any] = {"num_items_in_batch": num_items_in_batch, "shift_labels": shift_labels, **kwargs}
        return ForCausalLMLoss(logits, labels, vocab_size, ignore_index=ignore_index, **more)
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    shift_labels = shift_labels.reshape(-1)
    losses = _CrossEntropies.apply(logits, shift_labels, ignore_index)
    return losses.sum() / ((shift_labels != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch)

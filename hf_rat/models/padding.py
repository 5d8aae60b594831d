"""Padding out of the way. One file on torch alone: it travels with a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def valid_first(mask: Tensor) -> tuple[Tensor | None, Tensor]:
    """The order of steps (batch, time) that puts the valid ones first, None if they are; and how many they are.

    Args:
        mask: (batch, time) bool, True at valid steps.
    """
    lengths = mask.sum(1)
    if bool((mask[:, :-1] | ~mask[:, 1:]).all()):
        return None, lengths
    return mask.byte().argsort(dim=1, descending=True, stable=True), lengths


def permute_steps(x: Tensor, order: Tensor | None) -> Tensor:
    """(batch, time, d) with the steps of each example in the given order (batch, time)."""
    return x if order is None else x.gather(1, order.unsqueeze(-1).expand_as(x))


def to_front(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Put the valid steps of each example first, in their order, wherever its padding lies, and cut what none uses.

    Args:
        x: (batch, time, d).
        mask: (batch, time) bool, True at valid steps.

    Returns:
        x as (batch, longest, d), zero after each example's last step, and the new mask (batch, longest). There is at
        least one step.
    """
    order, lengths = valid_first(mask)
    longest = max(int(lengths.max()), 1)
    x = F.pad(x, (0, 0, 0, 1)) if mask.size(1) == 0 else permute_steps(x, order)
    front = torch.arange(longest, device=x.device) < lengths.unsqueeze(1)
    x = x[:, :longest]
    return (x if bool(front.all()) else x.masked_fill(~front.unsqueeze(-1), 0)), front

"""Padding out of the way. One file on torch alone: it travels with a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def to_front(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Put the valid steps of each example first, in their order, wherever its padding lies, and cut what none uses.

    Args:
        x: (batch, time, d).
        mask: (batch, time) bool, True at valid steps.

    Returns:
        x as (batch, longest, d), zero after each example's last step, and the new mask (batch, longest). There is at
        least one step.
    """
    lengths = mask.sum(1)
    longest = max(int(lengths.max()), 1)
    if mask.size(1) == 0:
        x = F.pad(x, (0, 0, 0, 1))
    elif bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        order = mask.byte().argsort(dim=1, descending=True, stable=True)
        x = x.gather(1, order.unsqueeze(-1).expand_as(x))
    front = torch.arange(longest, device=x.device) < lengths.unsqueeze(1)
    x = x[:, :longest]
    return (x if bool(front.all()) else x.masked_fill(~front.unsqueeze(-1), 0)), front

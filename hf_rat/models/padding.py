"""Padding out of the way. One file on torch alone: it travels with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

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
    """(batch, time, d) with the steps of each example in the given order (batch, steps)."""
    return x if order is None else x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.size(-1)))


def beside_neighbours(x: Tensor, window: int, lengths: Tensor | None) -> Tensor:
    """Each step side by side with those around it: (batch, time, d) -> (batch, time, window * d).

    Args:
        x: the valid steps of each example first.
        window: odd number of steps. What lies before the first step and behind the last valid one is zero.
        lengths: (batch,) valid steps; None: all are.
    """
    if window == 1:
        return x
    if lengths is not None:
        beyond = torch.arange(x.size(1), device=x.device) >= lengths.unsqueeze(1)
        x = x.masked_fill(beyond.unsqueeze(-1), 0)
    return F.pad(x, (0, 0, window // 2, window // 2)).unfold(1, window, 1).transpose(2, 3).flatten(2)


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


def check_lengths(lengths: Tensor | Sequence[int] | None, batch: int, time: int) -> Tensor | None:
    """The valid steps of each example, (batch,) on the CPU; None where nothing is padded.

    Raises:
        ValueError: a wrong shape, or lengths outside 0..time.
    """
    if lengths is None:
        return None
    lengths = torch.as_tensor(lengths, dtype=torch.long).cpu()
    if lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}, expected ({batch},)")
    if int(lengths.min()) < 0 or int(lengths.max()) > time:
        raise ValueError(f"lengths go from {int(lengths.min())} to {int(lengths.max())}, expected 0..{time}")
    return None if int(lengths.min()) == time else lengths


class Rows:
    """The valid (step, example) pairs in packed order: by step, in each step the longest examples first.

    Args:
        batch, time: the shape of the padded batch.
        lengths: (batch,) on the CPU; None when nothing is padded.
        device: where the rows live.
    """

    def __init__(self, batch: int, time: int, lengths: Tensor | None, device: torch.device) -> None:
        self.batch, self.time, self.padded = batch, time, lengths is not None
        self.sizes = [batch] * time
        if lengths is None:
            return
        ordered, order = lengths.sort(descending=True, stable=True)
        step, example = (torch.arange(int(ordered[0]))[:, None] < ordered).nonzero(as_tuple=True)
        sizes = step.bincount()
        start = F.pad(sizes.cumsum(0), (1, 0))
        self.sizes = sizes.tolist()
        self.order, self.inverse = order.to(device), order.argsort().to(device)
        self.flat = (step * batch + order[example]).to(device)
        self.example = example.to(device)
        self.mirror = (start[ordered[example] - 1 - step] + example).to(device)
        self.previous = (start[step - 1] + example)[self.sizes[0] if self.sizes else 0 :].to(device)
        # Into (initial state, rows): the row of each example's last step, or its initial state if it has none.
        last = batch + start[(ordered - 1).clamp(min=0)] + torch.arange(batch)
        self.last = torch.where(ordered > 0, last, torch.arange(batch))[order.argsort()].to(device)

    @property
    def count(self) -> int:
        return sum(self.sizes)

    def pack(self, x: Tensor) -> Tensor:
        """(time, batch, d) -> (rows, d)."""
        x = x.reshape(self.time * self.batch, -1)
        return x.index_select(0, self.flat) if self.padded else x

    def unpack(self, rows: Tensor) -> Tensor:
        """(rows, d) -> (time, batch, d), zero at padded steps."""
        if self.padded:
            rows = rows.new_zeros(self.time * self.batch, rows.size(1)).index_copy(0, self.flat, rows)
        return rows.view(self.time, self.batch, -1)

    def sort(self, state: Tensor) -> Tensor:
        """(batch, ...) in the order of a step."""
        return state.index_select(0, self.order) if self.padded else state

    def spread(self, mask: Tensor) -> Tensor:
        """(batch, ...), sorted -> (rows, ...): each example's at all its steps."""
        if self.padded:
            return mask.index_select(0, self.example)
        return mask.expand(self.time, *mask.shape).reshape(-1, *mask.shape[1:])

    def reverse(self, rows: Tensor) -> Tensor:
        """(rows, d) with the valid steps of each example in reverse order; its own inverse."""
        if self.padded:
            return rows.index_select(0, self.mirror)
        return rows.view(self.time, self.batch, -1).flip(0).view(rows.shape)

    def before(self, first: Tensor, rows: Tensor) -> Tensor:
        """(rows, d): what the state was before each row; `first` is the initial state, sorted."""
        first = first[: self.sizes[0] if self.sizes else 0]
        return torch.cat([first, rows.index_select(0, self.previous) if self.padded else rows[: -self.batch]])

    def final(self, first: Tensor, rows: Tensor) -> Tensor:
        """(batch, d): the state after each example's last valid step, in the caller's order."""
        return torch.cat([first, rows]).index_select(0, self.last) if self.padded else rows[-self.batch :]

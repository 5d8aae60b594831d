"""What the geometry must know of where a perturbation is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class Geometry:
    """What the geometry must know of a batch at a site.

    Args:
        shape: of a perturbation, batch first: (batch, time, dim) for embeddings, (batch, units) for a mask, (batch,
            ...) for any other module's output.
        device: where perturbations live.
        mask: (batch, time) bool, True on tokens, False on padding; None where there is no padding. The perturbation
            is then (batch, time, dim).
        ids: (batch, time) token ids, for perturbations of the embedding table.
        padding_idx: the row of the table that never moves, or None.
        embedding_norm: mean L2 norm of the embeddings of all tokens: the length of `unit="embedding"`. None where
            there are no tokens.
        own: makes what the site puts out for the batch by itself, of the shape of a perturbation and without a graph:
            of its length is `unit="relative"`. None where a perturbation changes a mask.
    """

    shape: tuple[int, ...]
    device: torch.device
    mask: Tensor | None = None
    ids: Tensor | None = None
    padding_idx: int | None = None
    embedding_norm: float | None = 1.0
    own: Callable[[], Tensor] | None = None

    def length(self, size: float, unit: str) -> float | Tensor:
        """`size` in absolute terms: one number, or with `unit="relative"` one for each example, (batch, 1, ...)."""
        if unit == "absolute":
            return size
        if unit == "relative":
            return size * self.own_length
        if self.embedding_norm is None:
            raise ValueError('unit="embedding" needs word embeddings, which this site is not; use unit="absolute"')
        return size * self.embedding_norm

    @cached_property
    def own_length(self) -> Tensor:
        """L2 norm of each example's own tensor at the site, over all its tokens but padding; (batch, 1, ...) fp32.

        Zero where an entry is not finite: such an example does not move.
        """
        if self.own is None:
            raise ValueError('unit="relative" is a share of what a module puts out, and this site changes a mask')
        x = self.own().detach().float()
        if self.mask is not None:
            x = x.where(self.mask.unsqueeze(-1), 0.0)  # what stands on padding may be NaN
        norm = torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *[1] * (len(self.shape) - 1))
        return norm.where(torch.isfinite(norm), 0.0)

    def masked(self, x: Tensor) -> Tensor:
        return x if self.mask is None else x * self.mask.unsqueeze(-1)

    def entries(self) -> Tensor:
        """Unpadded entries per example, (batch, 1, ...), with as many axes as a perturbation."""
        ones = [1] * (len(self.shape) - 1)
        if self.mask is None:
            return torch.full((self.shape[0], *ones), float(math.prod(self.shape[1:])), device=self.device)
        return (self.mask.sum(-1) * self.shape[-1]).clamp(min=1).view(-1, *ones).float()

    @cached_property
    def _tokens(self) -> tuple[Tensor, Tensor]:
        if self.ids is None:
            raise ValueError('scope="table" needs the ids of a look-up, which this site is not; use scope="example"')
        return torch.unique(self.ids.flatten(), return_inverse=True)

    @property
    def rows_shape(self) -> tuple[int, int]:
        return len(self._tokens[0]), self.shape[-1]

    def row_entries(self) -> int:
        """Entries of the table's rows that unpadded positions use."""
        where = self._tokens[1]
        used = where if self.mask is None else where[self.mask.flatten()]
        return max(1, len(torch.unique(used))) * self.shape[-1]

    def gather_rows(self, x: Tensor, mean: bool = False) -> Tensor:
        """Sum (or mean) over the occurrences of each token: (distinct tokens, dim). Padding's row is 0."""
        tokens, where = self._tokens
        rows = x.new_zeros(self.rows_shape).index_add_(0, where, x.reshape(-1, x.shape[-1]))
        if mean:
            rows /= torch.bincount(where, minlength=len(tokens)).unsqueeze(-1)
        if self.padding_idx is not None:
            rows[tokens == self.padding_idx] = 0
        return rows

    def spread_rows(self, rows: Tensor) -> Tensor:
        """The inverse look-up: each position gets its token's row, (batch, time, dim)."""
        return rows[self._tokens[1]].view(self.shape)

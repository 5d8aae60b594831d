"""What the geometry must know of where a perturbation is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class Place:
    """What the geometry must know of a batch at a site.

    Args:
        shape: of a perturbation, batch first: (batch, time, dim) for embeddings, (batch, units) for a mask.
        device: where perturbations live.
        mask: (batch, time) bool, True on tokens, False on padding; None where there is no padding.
        ids: (batch, time) token ids, for perturbations of the embedding table.
        padding_idx: the row of the table that never moves, or None.
        embedding_norm: mean L2 norm of the rows of the embedding table: the length of `unit="embedding"`.
    """

    shape: tuple[int, ...]
    device: torch.device
    mask: Tensor | None = None
    ids: Tensor | None = None
    padding_idx: int | None = None
    embedding_norm: float = 1.0

    def length(self, size: float, unit: str) -> float:
        return size * self.embedding_norm if unit == "embedding" else size

    def masked(self, x: Tensor) -> Tensor:
        return x if self.mask is None else x * self.mask.unsqueeze(-1)

    def entries(self) -> Tensor:
        """Unpadded entries per example, (batch, 1, 1)."""
        per_token = self.shape[-1]
        if self.mask is None:
            return torch.full((self.shape[0], 1, 1), float(self.shape[1] * per_token), device=self.device)
        return (self.mask.sum(-1) * per_token).clamp(min=1).view(-1, 1, 1).float()

    @cached_property
    def _tokens(self) -> tuple[Tensor, Tensor]:
        if self.ids is None:
            raise ValueError('scope="table" needs input_ids in the batch; use scope="example"')
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

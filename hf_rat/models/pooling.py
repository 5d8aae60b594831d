"""One vector from many, reading nothing of padding. One file on torch alone: it travels with a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mean_over(x: Tensor, mask: Tensor) -> Tensor:
    """(batch, time, d) and (batch, time) bool -> (batch, d): the mean of the valid steps, 0 where there are none."""
    keep = mask.unsqueeze(-1)
    return x.masked_fill(~keep, 0.0).sum(1) / keep.sum(1).clamp(min=1)


def max_over(x: Tensor, mask: Tensor) -> Tensor:
    """(batch, time, d) and (batch, time) bool -> (batch, d): the largest valid step, 0 where there is none."""
    largest = x.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
    return largest.masked_fill(~mask.any(1, keepdim=True), 0.0)


class Attention(nn.Module):
    """Masked attention of one learnt query: sum_t softmax_t(u . tanh(W h_t + b)) h_t (Yang et al. 2016).

    Args:
        size: width of h.
        hidden: width of the tanh layer. Default: `size`.
    """

    def __init__(self, size: int, hidden: int | None = None) -> None:
        super().__init__()
        self.project = nn.Linear(size, hidden or size)
        self.query = nn.Linear(hidden or size, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, size) and (batch, time) bool -> (batch, size) and the weights (batch, time).

        An example without a valid step gets zeros.
        """
        scores = self.query(self.project(x).tanh()).squeeze(-1).float()
        # A finite fill: a row of minus infinities alone would be NaN. The product then makes padding exactly 0.
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask
        return torch.einsum("bt,btd->bd", weights.to(x.dtype), x.masked_fill(~mask.unsqueeze(-1), 0.0)), weights

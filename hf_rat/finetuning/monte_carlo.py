"""Predictions that are averaged over passes with dropout (Gal and Ghahramani 2016), and how far the passes spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MonteCarlo(NamedTuple):
    """How predictions are averaged.

    Args:
        passes: at least 2.
        dropout: the modules that drop out, from `find_dropout`.
        regression: whether the logits are values.
    """

    passes: int
    dropout: Sequence[nn.Module]
    regression: bool


class Averaged(NamedTuple):
    """What several passes say together.

    Attributes:
        logits: log of the mean of the passes' probabilities, (batch, classes); of a regression the mean of their
            values, (batch, 1). In fp32, or fp64 if they are.
        spread: standard deviation over the passes, (batch,): of the probability of the class that the mean predicts,
            of a regression of the value.
    """

    logits: Tensor
    spread: Tensor


def average_passes(logits: list[Tensor], regression: bool) -> Averaged:
    """Average two passes or more.

    Args:
        logits: of each pass, (batch, classes), of a regression (batch, 1) or (batch,).
        regression: whether they are values.
    """
    passes = torch.stack([one if one.dtype == torch.float64 else one.float() for one in logits])
    if regression:
        values = passes.flatten(1)
        return Averaged(values.mean(0).unsqueeze(-1), values.std(0))
    passes = F.log_softmax(passes, dim=-1)
    mean = passes.logsumexp(0) - math.log(len(passes))
    predicted = mean.argmax(-1, keepdim=True).expand(len(passes), -1, 1)
    return Averaged(mean, passes.gather(-1, predicted).squeeze(-1).exp().std(0))

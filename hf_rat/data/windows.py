"""A text in columns that are read side by side, window by window: the batches of truncated back-propagation.

windows = Windows(ids, columns=20, length=35)
loader = DataLoader(windows, batch_size=20)  # in order: each batch is a window, and goes on where the last one ended
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

IGNORED = -100
"""The label of a step that is not scored."""

# Of variable windows (Merity et al. 2018): how often the usual length is the middle, and the spread around it.
_USUAL, _SPREAD, _LEAST = 0.95, 5.0, 5


class Windows(Dataset[dict[str, Tensor]]):
    """Token t is read, token t + 1 is predicted, so a text of n tokens has n - 1 steps. Each column is a part of them.

    Example `w * columns + c` is what window w shows of column c: `input_ids` and `shift_labels`, (steps,) int64. A
    loader that takes `columns` examples at a time, in order, makes a batch of each window.

    Args:
        ids: the text, (tokens,) int64.
        columns: parts of the text that are read side by side.
        length: steps of a window; the last one of a text has what is left.
        variable: windows of other lengths in each epoch, as AWD-LSTM: normal with a deviation of 5, at least 5, around
            `length`, or, one time in twenty, around half of it. They are drawn once; each epoch has them in another
            order, so that all epochs have as many.
        seed: of the lengths and their orders.
        whole: columns of unlike length, so that every step is in one of them, as evaluation needs it; the shorter ones
            end with a step that is not scored. Otherwise up to `columns` - 1 last steps of the text are left out.

    Raises:
        ValueError: the text has too few tokens for a step in each column.
    """

    def __init__(
        self,
        ids: Tensor,
        columns: int,
        length: int,
        *,
        variable: bool = False,
        seed: int = 0,
        whole: bool = False,
    ) -> None:
        steps = max(len(ids) - 1, 0)
        self.columns, self.length, self.seed = columns, length, seed
        self._digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16]
        self.steps = math.ceil(steps / columns) if whole else steps // columns
        """Steps of a column."""
        if self.steps == 0:
            raise ValueError(
                f"a text of {len(ids)} tokens has no step for each of {columns} columns: more text or fewer columns"
            )
        self._inputs = _in_columns(ids[:-1], columns, self.steps, 0)
        self._targets = _in_columns(ids[1:], columns, self.steps, IGNORED)
        self._drawn = _draw_lengths(self.steps, length, np.random.default_rng([seed, 0])) if variable else None
        self.lengths = np.array([])
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Take the windows of an epoch, from 0."""
        if self._drawn is not None:
            self.lengths = np.random.default_rng([self.seed, 1, epoch]).permutation(self._drawn)
        elif not len(self.lengths):
            whole, rest = divmod(self.steps, self.length)
            self.lengths = np.array([self.length] * whole + [rest] * (rest > 0))
        self._ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return self.columns * len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window, column = divmod(index, self.columns)
        end = int(self._ends[window])
        seen = slice(end - int(self.lengths[window]), end)
        return {"input_ids": self._inputs[column, seen], "shift_labels": self._targets[column, seen]}

    @property
    def scored(self) -> int:
        """Steps that are predicted in an epoch."""
        return int((self._targets != IGNORED).sum())

    @property
    def description(self) -> dict[str, Any]:
        """What decides which window comes at a step: a run that goes on must have the same."""
        return {
            "text": self._digest,
            "columns": self.columns,
            "length": self.length,
            "variable": self._drawn is not None,
            "seed": self.seed if self._drawn is not None else None,
        }


def _in_columns(part: Tensor, columns: int, steps: int, filler: int) -> Tensor:
    """(columns, steps): contiguous parts; the last ones may be a step short, where the filler stands."""
    short = columns * steps - len(part)
    if short <= 0:
        return part[: columns * steps].view(columns, steps)
    longer = columns - short
    first, rest = part[: longer * steps].view(longer, steps), part[longer * steps :].view(short, steps - 1)
    return torch.cat([first, F.pad(rest, (0, 1), value=filler)])


def _draw_lengths(steps: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """Lengths that make up a column."""
    lengths: list[int] = []
    left = steps
    while left > 0:
        middle = length if generator.random() < _USUAL else length / 2
        lengths.append(min(left, max(_LEAST, int(generator.normal(middle, _SPREAD)))))
        left -= lengths[-1]
    return np.array(lengths)

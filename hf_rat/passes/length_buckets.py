"""A micro-batch in sub-batches of like length, so that short examples are not padded to the longest one.

Padding to the longest example of a batch is exact and wasteful: with the lengths of real text a third to a half of a
batch is padding. A bucket holds the examples of one length range, cut to the longest of *them*; each is forwarded by
itself, and losses and logits are put together again, so that everything above (divergences, norms over the batch, the
adversary) sees one batch. The result is that of the padded batch up to rounding and the order in which dropout masks
are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PER_TOKEN = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids", "special_tokens_mask"})
"""Inputs that are cut with the tokens, all (batch, time)."""


@dataclass(frozen=True)
class Bucket:
    """Some examples of a batch.

    Args:
        rows: (n,) int64, which ones.
        length: tokens of the longest of them.
        padded: tokens of the longest example of the batch.
    """

    rows: Tensor
    length: int
    padded: int

    def inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The bucket's part of a batch."""
        size = inputs["input_ids"].shape[0]
        return {
            name: self._cut(value, name in PER_TOKEN or _are_token_labels(name, value, self.padded))
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size
            else value
            for name, value in inputs.items()
        }

    def move(self, move: Tensor) -> Tensor:
        """The bucket's part of a perturbation: (batch, time, dim) of tokens, or (batch, units) of a mask."""
        return self._cut(move, move.dim() > 2)

    def _cut(self, x: Tensor, per_token: bool) -> Tensor:
        return x[self.rows, : self.length] if per_token else x[self.rows]

    def tile(self, times: int, size: int) -> Bucket:
        """The same examples of every copy of a batch of `size` that stands there `times` over."""
        rows = torch.cat([self.rows + copy * size for copy in range(times)])
        return Bucket(rows, self.length, self.padded)


def buckets(inputs: Mapping[str, Any], overhead: float) -> list[Bucket]:
    """How a batch is split at the least cost; nothing where it is best left whole.

    Args:
        inputs: the model's keyword arguments; only a batch padded on the right, with `input_ids` and `attention_mask`
            of (batch, time), is ever split.
        overhead: what a forward costs however short it is, in tokens.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not (isinstance(ids, Tensor) and isinstance(mask, Tensor) and ids.dim() == 2 and mask.shape == ids.shape):
        return []
    count, padded = ids.shape
    if padded == 0 or any(_may_be_per_token(name, value, padded) for name, value in inputs.items()):
        return []
    mask = mask.bool()
    gaps = (mask[:, 1:] & ~mask[:, :-1]).sum(-1)  # tokens that follow padding
    lengths, gap = torch.stack([mask.sum(-1), gaps]).tolist()  # one transfer to the host
    if any(gap):
        return []
    lengths = [max(1, length) for length in lengths]
    order = sorted(range(count), key=lengths.__getitem__)
    ends = partition([lengths[row] for row in order], overhead)
    if len(ends) == 1 and lengths[order[-1]] == padded:
        return []
    return [
        Bucket(torch.tensor(order[start:end], device=ids.device), lengths[order[end - 1]], padded)
        for start, end in pairwise([0, *ends])
    ]


def _are_token_labels(name: str, value: Any, padded: int) -> bool:
    return name == "labels" and value.dim() == 2 and value.shape[1] == padded and not value.is_floating_point()


def _may_be_per_token(name: str, value: Any, padded: int) -> bool:
    """Whether nobody can tell if this input, of a name we do not know, is to be cut with the tokens."""
    return (
        isinstance(value, Tensor)
        and value.dim() > 1
        and padded in value.shape[1:]
        and name not in PER_TOKEN
        and name != "labels"
    )


def partition(lengths: Sequence[int], overhead: float) -> list[int]:
    """Where to cut ascending `lengths` so that `sum over parts of (examples x longest + overhead)` is least.

    Returns:
        The end of each part, the last of them len(lengths).
    """
    best = [0.0] + [float("inf")] * len(lengths)
    cuts = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        for start in range(end):
            cost = best[start] + (end - start) * lengths[end - 1] + overhead
            if cost < best[end]:
                best[end], cuts[end] = cost, start
    ends = [len(lengths)]
    while cuts[ends[-1]]:
        ends.append(cuts[ends[-1]])
    return ends[::-1]


def join(parts: Sequence[Tensor], split: Sequence[Bucket]) -> Tensor:
    """What the buckets made of `parts`, (n, ...) or (n, time, ...) each, as one tensor of the batch.

    Positions that a bucket was spared are zero.
    """
    full = [
        F.pad(part, [0, 0] * (part.dim() - 2) + [0, bucket.padded - bucket.length])
        if part.dim() > 2 and part.shape[1] == bucket.length
        else part
        for part, bucket in zip(parts, split, strict=True)
    ]
    return torch.cat(full)[torch.cat([bucket.rows for bucket in split]).argsort()]


def mean_of(losses: Sequence[Tensor | None], labels: Sequence[Tensor]) -> Tensor | None:
    """The mean over all labels, of the mean loss of each bucket, NaN where it has no label, and how many it has."""
    if not labels:
        return None
    sums = [torch.where(n > 0, n * loss, 0.0) for n, loss in zip(labels, losses, strict=True)]  # type: ignore[operator]
    return torch.stack(sums).sum() / torch.stack(list(labels)).sum()


@contextmanager
def share_casts(device: torch.device) -> Iterator[None]:
    """Forwards inside share the weights that autocast casts, and the cast of their gradients.

    The outermost autocast empties torch's cache of casts, and a model that Accelerate prepares has one around each of
    its forwards. Here is one around them, which leaves all as it is.
    """
    kind = device.type
    with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)):
        yield

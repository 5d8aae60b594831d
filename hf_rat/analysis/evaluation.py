"""The mean loss of a model over batches, and how much of it is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_rat.passes.outputs import logits_of, loss_of

Batches = Sequence[Mapping[str, Tensor]]


class Score(NamedTuple):
    """What a model makes of one batch.

    Args:
        loss: its mean, 0-d.
        weight: labels that count in it.
        right: how many of these the largest logit meets; None where labels are no classes or there are no logits.
    """

    loss: Tensor
    weight: int
    right: Tensor | None

    @classmethod
    def of(cls, outputs: Any, batch: Mapping[str, Tensor], name: str) -> Score:
        """Read what a model returned.

        Raises:
            ValueError: there is no loss.
        """
        loss = loss_of(outputs)
        if loss is None:
            raise ValueError(f"{name} returned no loss: the batches need labels, or the model must return its loss")
        labels = batch.get("labels")
        weight = labels_that_count(batch)
        if labels is None or labels.is_floating_point():
            return cls(loss, weight, None)
        try:
            logits = logits_of(outputs, name)
        except ValueError:  # one that returns its loss alone
            return cls(loss, weight, None)
        right = (logits.argmax(-1) == labels).sum() if logits.shape[:-1] == labels.shape else None
        return cls(loss, weight, right)


def labels_that_count(batch: Mapping[str, Tensor]) -> int:
    """Of how many labels a batch's loss is the mean: -100 stands where there is none; of its rows without labels."""
    labels = batch.get("labels")
    if labels is None or labels.is_floating_point():
        return len(next(iter(batch.values())) if labels is None else labels)
    return int((labels != -100).sum())


def total(scores: Sequence[Score]) -> tuple[float, float | None]:
    """The mean loss over all labels, and the share that is right."""
    weight = sum(score.weight for score in scores)
    loss = sum(float(score.loss) * score.weight for score in scores) / weight
    rights = [score.right for score in scores if score.right is not None]
    return loss, sum(int(right) for right in rights) / weight if len(rights) == len(scores) else None


@torch.no_grad()
def evaluate(call: Callable[..., Any], batches: Batches, name: str) -> tuple[float, float | None]:
    """Mean loss and accuracy over batches; see `total`."""
    return total([Score.of(call(**batch), batch, name) for batch in batches])

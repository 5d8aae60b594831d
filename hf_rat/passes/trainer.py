"""Passes through the Trainer of transformers, and through those that return their outputs as it does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from hf_rat.regularizers.problems import is_labelled
from hf_rat.regularizers.terms import Term


class Passes:
    """One pass with the loss of a trainer.

    Args:
        trainer: with the mixin in front.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    @classmethod
    def fits(cls, trainer: object) -> bool:
        """Whether this is the way of a trainer."""
        return True

    def require(self, regularizer: Term) -> None:
        """Refuse what the regularizer would be wrong under.

        Raises:
            ValueError: the message says why.
        """

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """A new micro-batch."""

    def has_task(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a batch has what the task loss needs."""
        return is_labelled(inputs)

    def task(
        self, compute_loss: Callable[..., Any], model: nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, Any]:
        """One pass.

        Args:
            compute_loss: of the class behind the mixin.
            model: as the loop calls it.
            inputs: of a micro-batch, or of a part or several copies of one.

        Returns:
            The task loss, a mean over `inputs`; the outputs, with the graph of their logits.
        """
        inputs = dict(inputs)  # the Trainer's own compute_loss takes the labels out
        if self.trainer.compute_loss_func is None or "labels" not in inputs:
            loss, outputs = compute_loss(model, inputs, return_outputs=True)
            return loss, outputs
        count = self.trainer.regularization.counted(inputs).clamp(min=1)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        return self.trainer.compute_loss_func(outputs, labels, num_items_in_batch=count), outputs


def is_a(trainer: object, module: str, name: str) -> bool:
    """Whether a trainer is of a class of a package that need not be installed."""
    return module in sys.modules and isinstance(trainer, getattr(sys.modules[module], name))

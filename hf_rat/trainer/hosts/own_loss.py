"""The task loss that a user's class defines: in front of the mixin, behind it, or on the instance.

`training_step` and evaluation call `self.compute_loss`. On an instance that is the regularizer's way in, so that the
`compute_loss` of the class is free to be the loss of one pass, and `super().compute_loss` in it the Trainer's own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import Trainer

from hf_rat.trainer.hosts.base import Host

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class OwnLoss(_Base):
    """Base of the mixin: finds the task loss of a trainer.

    Raises:
        TypeError: a class is defined with a Trainer in front of the mixin, which would then do nothing.
    """

    host: Host
    _assigned_loss: Callable[..., Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        mro = cls.__mro__
        if Trainer in mro and mro.index(Trainer) < mro.index(OwnLoss):
            first = next(kind for kind in cls.__bases__ if issubclass(kind, Trainer))
            raise TypeError(
                f"class {cls.__name__} has {first.__name__} in front of RegularizationMixin, so nothing would be "
                f"regularized; write class {cls.__name__}(RegularizationMixin, {first.__name__})"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "compute_loss":  # as one that a class defines, it is the loss of a pass
            name, value = "_assigned_loss", (None if value == self._loss_of_step else value)
        super().__setattr__(name, value)

    def _loss_of_step(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def _enter_by_compute_loss(self) -> None:
        vars(self)["compute_loss"] = self._loss_of_step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The task loss of one pass, as the class behind the mixin has it: what an overriding class calls.

        On an instance, `trainer.compute_loss` is the loss of a whole step instead.
        """
        if self.host.running and self.compute_loss_func is not None and "labels" in inputs:
            return self.host.by_function(model, inputs, return_outputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @property
    def _task_loss(self) -> Callable[..., Any]:
        """(model, inputs, ...) -> the task loss of one pass."""
        return self._assigned_loss or MethodType(type(self).compute_loss, self)

    @property
    def _overrides_loss(self) -> bool:
        """Whether the task loss is computed by code of the user's, in a method."""
        mro = type(self).__mro__
        behind = next(kind for kind in mro[mro.index(OwnLoss) + 1 :] if "compute_loss" in vars(kind))
        in_front = type(self).compute_loss is not OwnLoss.compute_loss
        return self._assigned_loss is not None or in_front or behind is not Trainer

    @property
    def _has_own_loss(self) -> bool:
        """Whether the task loss is the user's: weigh by classes, or a contrast between examples, for instance."""
        return self.compute_loss_func is not None or self._overrides_loss

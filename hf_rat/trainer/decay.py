"""A learning rate that decays exponentially, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import ExponentialLR
from transformers import Trainer

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class Decay(_Base):
    """Base of a Trainer: obeys `lr_decay` of the arguments, by torch's ExponentialLR."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's, or the exponential one.

        Raises:
            ValueError: `lr_decay` is set and a schedule was given.
        """
        decay = getattr(self.args, "lr_decay", None)
        if decay is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            stepped: Any = optimizer or self.optimizer
            exponential: Any = ExponentialLR(stepped, decay)
            self.lr_scheduler = exponential
            self._created_lr_scheduler = True
        elif not self._created_lr_scheduler:
            raise ValueError(f"lr_decay={decay}: a {type(self.lr_scheduler).__name__} was given; keep one of them")
        return self.lr_scheduler

"""Learning rates that fall from layer to layer, and a head that learns before the rest of the model does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer

from hf_rat.engine.layers import body_of, scale_by_layer

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class ByLayer(_Base):
    """Base of the mixin: obeys `layer_decay` and `probe_steps` of the arguments."""

    _scaled = False
    _body: list[nn.Parameter]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The Trainer's, with its groups split by layer where `layer_decay` says so."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        decay = getattr(self.args, "layer_decay", None)
        if fresh:
            self._scaled = decay is not None
            if decay is not None:
                scale_by_layer(optimizer, self.accelerator.unwrap_model(self.model), decay)
        return optimizer

    def _begin_by_layer(self) -> None:
        """Refuse what cannot be obeyed.

        Raises:
            ValueError: an optimizer that was not made here, a head that cannot be found, or DeepSpeed, whose gradients
                are out of reach.
        """
        decay, self._body = getattr(self.args, "layer_decay", None), []
        if decay is not None and not self._scaled:
            raise ValueError(f"layer_decay={decay}: the optimizer was given, and keeps its learning rates")
        steps = getattr(self.args, "probe_steps", 0)
        if steps > 0:
            if self.is_deepspeed_enabled:
                raise ValueError(f"probe_steps={steps}: DeepSpeed steps in its backward, whole; leave it out")
            self._body = body_of(self.accelerator.unwrap_model(self.model), f"probe_steps={steps}")

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self._probe()
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        self._probe()
        return super()._get_grad_norm(model, grad_norm)

    def _probe(self) -> None:
        """Take the gradients below the head away, while only the head is trained: the optimizer passes them over."""
        if self.state.global_step < getattr(self.args, "probe_steps", 0):
            for parameter in self._body:
                parameter.grad = None

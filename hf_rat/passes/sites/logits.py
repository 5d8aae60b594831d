"""A mask on the input of the layer that makes the logits: where adversarial dropout enters a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hf_rat.passes.dropout import without_trace
from hf_rat.passes.outputs import logits_of
from hf_rat.passes.sites.base import Site, batch_tensors
from hf_rat.passes.sites.geometry import Geometry

LOGITS_INPUT = "logits input"


class LogitsInputSite(Site):
    """A mask on the input of the linear layer that makes the logits: one mask per example, shared over time.

    A move is (batch, units) in {-1, 0}, and the mask `1 + move`. Kept units are scaled by units / (units that are on),
    as Park et al. do.

    Args:
        model: the unwrapped model.

    Raises:
        ValueError (at the first batch): no nn.Linear makes the logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.module: nn.Linear | None = None
        self._handle: Any = None

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.move is None:
            return None
        self.fired = True
        x = args[0]
        mask = 1.0 + self.move
        mask = mask * (mask.shape[-1] / mask.detach().sum(-1, keepdim=True).clamp(min=1.0))
        if x.shape[0] > mask.shape[0]:  # the choices of a multiple choice, which share their example's mask
            mask = mask.repeat_interleave(x.shape[0] // mask.shape[0], dim=0)
        if x.dim() == 3:
            mask = mask.unsqueeze(1)
        return ((x * mask).to(x.dtype), *args[1:])

    @property
    def unreached(self) -> str:
        return f"the dropout mask never reached the output layer of {type(self.model).__name__}"

    def geometry(self, inputs: Mapping[str, Any]) -> Geometry:
        first = next(iter(batch_tensors(inputs).values()))
        if self.module is None:
            self.module = self._find(inputs, first)
            self._handle = self.module.register_forward_pre_hook(self._hook)
        return Geometry(shape=(self.count_examples(inputs), self.module.in_features), device=first.device)

    def _find(self, inputs: Mapping[str, Any], first: Tensor) -> nn.Linear:
        """The nn.Linear that runs last and is as wide as the logits, or makes as many numbers.

        A score for each choice or step of time is one number wide there, or two for the ends of an answer.
        """
        ran: list[tuple[nn.Linear, int]] = []
        handles = [
            module.register_forward_hook(lambda module, args, output: ran.append((module, output.numel())))
            for module in self.model.modules()
            if isinstance(module, nn.Linear)
        ]
        try:
            with without_trace(self.model, first.device):
                logits = logits_of(self.model(**inputs), type(self.model).__name__)
        finally:
            for handle in handles:
                handle.remove()
        for module, numbers in reversed(ran):
            if module.out_features == logits.shape[-1] or numbers == logits.numel():
                return module
        raise ValueError(
            f"no nn.Linear of {type(self.model).__name__} makes its {logits.shape[-1]} logits, "
            "so adversarial_dropout has no mask to choose"
        )

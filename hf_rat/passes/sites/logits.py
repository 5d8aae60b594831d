"""A mask on the input of a linear layer, the one that makes the logits: where adversarial dropout enters a model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hf_rat.passes.adapters import without_adapters
from hf_rat.passes.dropout import without_trace
from hf_rat.passes.outputs import logits_of
from hf_rat.passes.sites.base import Site, batch_tensors
from hf_rat.passes.sites.geometry import Geometry

LOGITS_INPUT = "logits input"
INPUT_OF = "input of "
"""Before the name of another linear layer, the site of a mask on what that one reads."""


class LogitsInputSite(Site):
    """A mask on the input of a linear layer, the one that makes the logits: one mask per example, shared over time.

    A move is (batch, units) in {-1, 0}, and the mask `1 + move`. Kept units are scaled by units / (units that are on),
    as Park et al. do.

    Args:
        model: the unwrapped model; with adapters, names are those of the model inside.
        name: of the layer, as in `model.named_modules()`. Default: the one that makes the logits is found.

    Raises:
        ValueError: no nn.Linear has this name, or (at the first batch) none makes the logits.
    """

    def __init__(self, model: nn.Module, name: str | None = None) -> None:
        super().__init__(model)
        self.module: nn.Linear | None = None
        self._handle: Any = None
        if name is None:
            return
        base = without_adapters(model)
        linear = {path: module for path, module in base.named_modules() if isinstance(module, nn.Linear)}
        if name not in linear:
            near = difflib.get_close_matches(name, linear, n=3, cutoff=0.0)
            raise ValueError(
                f"adversarial_dropout(site={name!r}): {type(base).__name__} has no nn.Linear of this name, on whose "
                f"input a mask could act; expected {', '.join(['logits', 'recurrent', *near])}"
            )
        self._watch(linear[name])

    def _watch(self, module: nn.Linear) -> None:
        self.module, self._handle = module, module.register_forward_pre_hook(self._hook)

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
        return f"the dropout mask never reached the linear layer of {type(self.model).__name__} that it is for"

    def geometry(self, inputs: Mapping[str, Any]) -> Geometry:
        first = next(iter(batch_tensors(inputs).values()))
        if self.module is None:
            self._watch(self._find(inputs, first))
        assert self.module is not None
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

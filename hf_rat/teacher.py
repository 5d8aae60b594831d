"""The slow average of a model that `smart` stays near."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from hf_rat.regularizers.outputs import logits_of

FILE = "teacher.safetensors"


class Teacher:
    """A copy of a model whose weights follow it slowly, run without dropout and without gradients.

    Args:
        model: the unwrapped model, with no hook of ours on it yet.
        beta: how much of the average is kept at each optimizer step.
    """

    def __init__(self, model: nn.Module, beta: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.beta = beta

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any]) -> Tensor:
        return logits_of(self.model(**inputs), type(self.model).__name__)

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """`average = beta * average + (1 - beta) * model`; what is not a float is copied."""
        mine = model.state_dict()
        for name, averaged in self.model.state_dict().items():
            if averaged.is_floating_point():
                averaged.lerp_(mine[name].to(averaged.dtype), 1 - self.beta)
            else:
                averaged.copy_(mine[name])

    def save(self, folder: str | Path) -> None:
        save_model(self.model, str(Path(folder) / FILE))

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote; a ValueError names the file if it is not there."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing: this checkpoint was not made by a regularizer with a proximal term")
        load_model(self.model, str(path))

"""The output of any named module: where a perturbation enters a model that reads images or sound."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.adapters import without_adapters
from hf_rat.passes.sites.base import OutputSite, Shapes, batch_tensors, shapes_of
from hf_rat.passes.sites.geometry import Geometry


class ModuleSite(OutputSite):
    """The output of the module of a given name: the patches of an image, the frames of a sound, a hidden layer.

    Its shape is (batch, ...), with whatever axes after the batch: (batch, positions, dim), (batch, channels, height,
    width). Padding is known where the batch's `attention_mask` is (batch, positions). If the module runs several
    times in a forward it is moved in its first run.

    Args:
        model: the unwrapped model; with adapters, names are those of the model inside.
        name: as in `model.named_modules()`, for instance "vit.embeddings".

    Raises:
        ValueError: no module has this name; (at the first batch) it does not run, or its output is not batch-first.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        base: nn.Module = without_adapters(model)
        modules = {path: module for path, module in base.named_modules() if path}
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else "model.named_modules() lists the names"
            raise ValueError(f"site={name!r}: {type(base).__name__} has no module of this name to perturb; {hint}")
        super().__init__(model, modules[name])
        self.name = name
        self._shapes: dict[Shapes, tuple[int, ...]] = {}

    @property
    def unreached(self) -> str:
        return f"the perturbation never reached {type(self.model).__name__}: its {self.name} did not run"

    def geometry(self, inputs: Mapping[str, Any]) -> Geometry:
        """The geometry of a batch. Looks at the model when inputs of these shapes come for the first time."""
        tensors = batch_tensors(inputs)
        first, shapes = next(iter(tensors.values())), shapes_of(tensors)
        if shapes not in self._shapes:
            # An axis of the batch grows with the batch; there is no other way to be sure of it.
            examples = self.count_examples(inputs)
            twice = {name: torch.cat([x, x]) if len(x) == examples else x for name, x in tensors.items()}
            one, two = self._shape(inputs, first), self._shape({**inputs, **twice}, first)
            if one[0] != examples or two != (2 * one[0], *one[1:]):
                raise ValueError(
                    f"the output of {self.name} in {type(self.model).__name__} has shape {one} for {examples} "
                    f"examples and {two} for {2 * examples}: a site must be batch-first"
                )
            self._shapes[shapes] = one
        shape, attention = self._shapes[shapes], inputs.get("attention_mask")
        mask = None
        if isinstance(attention, Tensor) and len(shape) == 3 and attention.shape == shape[:2]:
            mask = attention.bool()
        own = partial(self._output, inputs, first)
        return Geometry(shape=shape, device=first.device, mask=mask, embedding_norm=None, own=own)

    def _shape(self, inputs: Mapping[str, Any], device: Tensor) -> tuple[int, ...]:
        output = self._output(inputs, device)
        if not (isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 1):
            raise ValueError(
                f"the output of {self.name} in {type(self.model).__name__} is no floating point tensor with a batch "
                f"axis but {type(output).__name__}; name a module that puts one out"
            )
        return tuple(output.shape)

    def _output(self, inputs: Mapping[str, Any], device: Tensor) -> Any:
        """What the module puts out in evaluation, in its first run."""
        found = self.probe(inputs, device)
        if found is None:
            raise ValueError(f"{type(self.model).__name__} does not run its {self.name}, so it cannot be perturbed")
        return found[1]

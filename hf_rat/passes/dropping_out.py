"""Dropout in evaluation: what of a model drops out is switched on, and nothing else of what training switches on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.dropout import RandomState, without_trace
from hf_rat.passes.outputs import logits_of

PASSES = 8
"""Passes that are compared before what is drawn is believed to change nothing (a layer that is rarely dropped)."""


def find_dropout(model: nn.Module, inputs: Mapping[str, Any], asked: str) -> list[nn.Module]:
    """The modules that must be in training mode for all dropout of a model to act, found by watching who draws.

    No list of layers can know: attention drops out inside a function, recurrent layers in a kernel, and a user's layer
    wherever it likes. A module counts if random numbers of torch, numpy or Python are drawn while it runs, and so does
    every module around it, since these decide how it runs. Batch normalisation draws nothing, and is left alone.

    Args:
        model: without wrappers. It is looked at in a few forwards without gradients, which leave no trace.
        inputs: of the model, a batch.
        asked: what needs dropout, the beginning of an error.

    Returns:
        What `dropping_out` takes.

    Raises:
        ValueError: nothing drops out, or what does is not in the mode of the module that runs it.
    """
    device = next(x.device for x in inputs.values() if isinstance(x, Tensor))
    name = type(model).__name__
    with without_trace(model, device):
        evaluated = _logits(model, inputs)
        for module in model.modules():
            # Batch normalisation cannot train on a batch of one, and draws nothing.
            module.training = not hasattr(module, "running_mean")
        start = RandomState(device)
        drawing = _drawing(model, inputs, device)
        end = RandomState(device)
        found = [module for module in model.modules() if not drawing.isdisjoint(module.modules())]
        model.eval()
        with dropping_out(found):
            start.restore()
            outputs = [_logits(model, inputs)]
            if RandomState(device) != end:
                raise ValueError(
                    f"{asked}: some of the dropout of {name} acts by the mode of a module that does not run it (its "
                    "forward is called as a function), so that it cannot be switched on alone"
                )
            while found and len(outputs) < PASSES and torch.equal(outputs[-1], evaluated):
                outputs.append(_logits(model, inputs))
    if torch.equal(outputs[-1], evaluated):
        raise ValueError(f"{asked}: {name} has no dropout; every rate is 0, or it has no layer that draws")
    return found


@contextmanager
def dropping_out(modules: Collection[nn.Module]) -> Iterator[None]:
    """Forwards inside drop out as in training; the rest of the model stays in the mode in which it is.

    Args:
        modules: from `find_dropout`.
    """
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = True
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _logits(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    return logits_of(model(**inputs), type(model).__name__)


def _drawing(model: nn.Module, inputs: Mapping[str, Any], device: torch.device) -> set[nn.Module]:
    """The modules in whose own code random numbers were drawn during one forward."""
    running: list[nn.Module] = []
    found: set[nn.Module] = set()
    state = RandomState(device)

    def look() -> None:
        nonlocal state
        now = RandomState(device)
        if now != state and running:
            found.add(running[-1])
        state = now

    def enter(module: nn.Module, args: Any) -> None:
        look()
        running.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        look()
        running.pop()

    handles = [module.register_forward_pre_hook(enter) for module in model.modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found

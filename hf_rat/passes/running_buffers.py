"""Buffers that a training forward changes, as the running statistics of batch normalisation: one update per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.dropout import dropout_at

_Named = list[tuple[nn.Module, str, Tensor]]


class RunningBuffers:
    """The buffers of a model that its forward changes, found by looking at them before and after a pass.

    A pass that must not change them runs on copies in their places, and its graph keeps the copies: nothing that a
    backward needs is overwritten. A model that changes none pays for the first look only. Where a module changes its
    mode (batch normalisation that is frozen), the next pass is looked at again.

    Args:
        model: without wrappers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._owners = [module for module in model.modules() if module._buffers]
        self._changing: dict[tuple[bool, ...], list[tuple[nn.Module, str]]] = {}

    def at_rate(self, rate: float) -> AbstractContextManager[None]:
        """Passes inside have this dropout rate; at 0, modules whose buffers change go on as in training."""
        return dropout_at(self._model, rate, {module for found in self._changing.values() for module, _ in found})

    @contextmanager
    def update(self) -> Iterator[None]:
        """A pass inside changes the buffers, as the model does by itself."""
        if self._mode in self._changing:
            yield
            return
        before = self.copies()
        yield
        self._learn(before)

    @contextmanager
    def keep(self) -> Iterator[None]:
        """A pass inside leaves the buffers as they are."""
        with self._in_place(self.copies()) as originals:
            yield
            self._learn(originals)

    def replay(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run`, which when it runs again (in a backward) begins with the buffers that it began with."""
        start: list[_Named] = []

        def again(*args: Any) -> Any:
            if not start:
                start.append(self.copies())
                return run(*args)
            with self._in_place(start[0]):
                return run(*args)

        return again

    def copies(self) -> _Named:
        """Copies of all buffers that may change."""
        everything = [(module, name) for module in self._owners for name in module._buffers]
        same: dict[int, Tensor] = {}
        found = []
        for module, name in self._changing.get(self._mode, everything):
            buffer = module._buffers[name]
            if buffer is not None:
                if id(buffer) not in same:
                    same[id(buffer)] = buffer.detach().clone()
                found.append((module, name, same[id(buffer)]))
        return found

    @property
    def _mode(self) -> tuple[bool, ...]:
        return tuple(module.training for module in self._owners)

    @contextmanager
    def _in_place(self, buffers: _Named) -> Iterator[_Named]:
        """Put these where they belong; yields what was there, and puts it back."""
        originals = [(module, name, module._buffers[name]) for module, name, _ in buffers]
        try:
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            yield originals  # type: ignore[misc]
        finally:
            for module, name, original in originals:
                module._buffers[name] = original

    def _learn(self, before: _Named) -> None:
        """Compare the buffers with what they were before a pass, once in each mode of the model."""
        if self._mode not in self._changing:
            self._changing[self._mode] = [
                (module, name)
                for module, name, buffer in before
                if (now := module._buffers[name]) is None or not torch.equal(now, buffer)
            ]

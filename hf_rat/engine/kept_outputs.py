"""What a loop wants back of a model beside the losses: the state that starts the next chunk, for instance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hf_rat.passes.execution import Execution, Pass, Run


class KeptOutputs:
    """Keeps outputs of the first pass over each batch: the clean one, with the model's own dropout.

    Args:
        names: fields of the model's output; none of them changes nothing.
        model: unwrapped, as any wrapper runs it.

    Attributes:
        values: what was kept of the last batch.
    """

    def __init__(self, names: Sequence[str], model: nn.Module) -> None:
        self.values: dict[str, Any] = {}
        self._names = tuple(names)
        self._watching = False
        self._hooks = [model.register_forward_hook(self._see)] if names else []

    def close(self) -> None:
        """Take the hook off."""
        for hook in self._hooks:
            hook.remove()

    def begin(self) -> None:
        """Before the passes over a batch: forget the outputs of the last one."""
        self.values.clear()

    def watch(self, execution: Execution) -> Execution:
        """The same, whose passes run one by one: of several in one, nobody can tell whose output is what."""
        if not self._names:
            return execution
        return replace(
            execution,
            run=self._watch(execution.run),
            search=execution.search and self._watch(execution.search),
            rerun=execution.rerun and self._watch(execution.rerun),
            why_one_by_one=lambda inputs: "outputs are kept",
        )

    def _watch(self, run: Run) -> Run:
        def watched(inputs: dict[str, Any]) -> Pass:
            with self.watching():
                return run(inputs)

        return watched

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A pass runs inside: its outputs are kept if it is the first one over its batch."""
        self._watching = not self.values
        try:
            yield
        finally:
            self._watching = False

    def _see(self, module: nn.Module, args: Any, outputs: Any) -> None:
        if not self._watching:
            return
        for name in self._names:
            value = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
            if value is None:
                raise ValueError(f"keep: {type(module).__name__} returned no {name!r} in its {type(outputs).__name__}")
            self.values[name] = _detached(name, value)


def _detached(name: str, value: Any) -> Any:
    """The same, cut off from its graph."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(name, part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_detached(name, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(
        f"keep: {name!r} is a {type(value).__name__}, whose tensors nobody can tell; return tensors in tuples, lists "
        "or dicts"
    )

"""What all sites have in common, and what those have that add to the output of a module."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.dropout import without_trace
from hf_rat.passes.outputs import logits_of
from hf_rat.passes.sites.geometry import Geometry

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def batch_tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What has a length among the inputs.

    Raises:
        ValueError: there is nothing.
    """
    tensors = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.dim() > 0}
    if not tensors:
        raise ValueError(f"the batch holds no tensors (its keys: {', '.join(inputs) or 'none'})")
    return tensors


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return tuple((name, tuple(x.shape)) for name, x in tensors.items())


def tell_what_is_lost(asked: Tensor, felt: Tensor, whose: str) -> None:
    """Warn where rounding takes more than half of a perturbation, measured along itself."""
    left = float((asked * felt).sum() / asked.square().sum())
    if left < 0.5:
        warnings.warn(
            f"a perturbation of at most {float(asked.abs().max()):.1g} is lost in the half precision {whose} "
            f"({left:.0%} of it is felt); enlarge it, or keep the weights in fp32 under autocast",
            stacklevel=2,
        )


class Site:
    """Where a perturbation enters a model. Subclasses hook a module and set `fired` when a move has reached it.

    Args:
        model: the unwrapped model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.move: Tensor | None = None
        self.fired = False
        self.module: Any = None
        self._examples: dict[Shapes, int] = {}

    def close(self) -> None:
        """Take the hook off."""
        raise NotImplementedError

    def geometry(self, inputs: Mapping[str, Any]) -> Geometry:
        """The geometry of a batch."""
        raise NotImplementedError

    def count_examples(self, inputs: Mapping[str, Any]) -> int:
        """How many examples a batch has: as many as its tensors are long.

        Where these have several lengths (class weights, the patches of all images), it is the one that the logits
        have too, for which the model runs once for each combination of shapes; the first, where they have none of
        them.
        """
        tensors = batch_tensors(inputs)
        lengths = [len(x) for x in tensors.values()]
        if len(set(lengths)) == 1:
            return lengths[0]
        shapes = shapes_of(tensors)
        if shapes not in self._examples:
            with without_trace(self.model, next(iter(tensors.values())).device):
                outputs = self.model(**inputs)
            try:
                rows = len(logits_of(outputs, type(self.model).__name__))
            except ValueError:  # a loss alone
                rows = 0
            self._examples[shapes] = rows if rows in lengths else lengths[0]
        return self._examples[shapes]

    def table_ids(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """(batch, time) int64, what `module` looks up in a table that learns; None where this is no such look-up."""
        return None

    @property
    def unreached(self) -> str:
        """What to say of a move that the model never ran into."""
        raise NotImplementedError

    @contextmanager
    def perturbed(self, move: Tensor | None, replaces: bool = False) -> Iterator[None]:
        """Forwards inside run perturbed by `move`, of the shape of `geometry`; None leaves them alone.

        With `replaces`, `move` is what takes the place of the whole output, as TableGradient makes it.
        """
        self.move, self.fired = move, False
        try:
            yield
            if move is not None and not self.fired:
                raise RuntimeError(self.unreached)
        finally:
            self.move = None


class _Seen(Exception):
    """Raised by a hook to end a look at the model as soon as it has seen enough."""


class OutputSite(Site):
    """A tensor that is added to the output of a module, in one of its runs in each forward.

    Args:
        model: the unwrapped model.
        module: the module. The first tensor of a tuple is its output.
        run: in which of its runs, from 0; a module that an encoder and a decoder share runs on both sides.
    """

    def __init__(self, model: nn.Module, module: nn.Module, run: int = 0) -> None:
        super().__init__(model)
        self.module = module
        self._run = run
        self._runs = 0
        self._replaces = False
        self._probing = False
        self._every = False
        self._found: list[tuple[Any, Any]] = []
        self._time_first = False
        self._measured = False
        self._handle = module.register_forward_hook(self._hook)

    def close(self) -> None:
        self._handle.remove()

    @property
    def unreached(self) -> str:
        return (
            f"the perturbation never reached {type(self.model).__name__}: its {type(self.module).__name__} "
            "did not run; pass input_ids rather than inputs_embeds"
        )

    @contextmanager
    def perturbed(self, move: Tensor | None, replaces: bool = False) -> Iterator[None]:
        self._runs, self._replaces = 0, replaces
        with super().perturbed(move, replaces):
            yield

    def _hook(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.move is None and not self._probing:
            return None
        self._runs += 1
        if self._probing:
            self._found.append((args[0] if args else None, output[0] if isinstance(output, tuple) else output))
            if self._runs == self._run + 1 and not self._every:
                raise _Seen
            return None
        if self._runs != self._run + 1:
            return None
        assert self.move is not None
        self.fired = True
        return self._added(self.move.transpose(0, 1) if self._time_first else self.move, output)

    def _added(self, move: Tensor, output: Any) -> Any:
        """The output of the module, moved."""
        first = output[0] if isinstance(output, tuple) else output
        # The move is fp32, hence the sum too: 1e-5 of noise vanishes in a half precision sum.
        move = move.reshape(first.shape)
        moved = (move if self._replaces else first + move).to(first.dtype)
        if first.dtype in (torch.float16, torch.bfloat16) and not self._measured:
            asked = (move - first if self._replaces else move).detach()
            if asked.any():
                self._measured = True
                whose = f"that the {type(self.module).__name__} of {type(self.model).__name__} puts out"
                tell_what_is_lost(asked, (moved.float() - first.float()).detach(), whose)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    def probe(self, inputs: Mapping[str, Any], first: Tensor) -> tuple[Any, Any] | None:
        """Run the model up to this site: (first positional argument, output) of the module; None if it did not run."""
        found = self._probe(inputs, first)
        return found[self._run] if len(found) > self._run else None

    def runs(self, inputs: Mapping[str, Any], first: Tensor) -> list[tuple[Any, Any]]:
        """Run the model once: (first positional argument, output) of the module in each of its runs."""
        self._every = True
        try:
            return self._probe(inputs, first)
        except Exception:
            if not self._found:  # what fails behind this site, a loss of training for instance, does not matter here
                raise
            return self._found
        finally:
            self._every = False

    def _probe(self, inputs: Mapping[str, Any], first: Tensor) -> list[tuple[Any, Any]]:
        self._probing, self._runs, self._found = True, 0, []
        try:
            with suppress(_Seen), without_trace(self.model, first.device):
                self.model(**inputs)
        finally:
            self._probing = False
        return self._found

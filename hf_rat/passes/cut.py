"""A cut through a model: the layers below it run once for a micro-batch, and every pass runs the layers above.

What is below is found by watching: the modules that the model runs before the lowest layer of its top, the outermost
ones. They run once and what they put out is kept. In a pass they do not run again but put out what was kept: detached,
so that the gradients of all passes add up at the cut, or with its graph where this backward goes on down through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hf_rat.passes.adapters import without_adapters
from hf_rat.passes.copies import find_uneven, near, tile
from hf_rat.passes.dropout import without_trace
from hf_rat.passes.execution import Run
from hf_rat.passes.layers import Place
from hf_rat.passes.running_buffers import RunningBuffers
from hf_rat.passes.sites.base import batch_tensors, tell_what_is_lost


@dataclass
class Output:
    """What one run of a module below the cut put out."""

    module: nn.Module
    leaves: list[Any]
    spec: TreeSpec


@dataclass
class Crossing:
    """What the layers below put out for a micro-batch, or a part of it.

    Attributes:
        outputs: in turn.
        hidden: what enters the lowest layer of the top, (batch, time, dim); one of the tensors of the outputs.
    """

    outputs: list[Output] = field(default_factory=list)
    hidden: Tensor | None = None
    _detached: dict[int, Tensor] = field(default_factory=dict)
    _versions: dict[int, int] = field(default_factory=dict)

    def tensor(self, x: Tensor, joined: bool) -> Tensor:
        """What stands for one of the tensors in a pass.

        Args:
            x: as it was put out.
            joined: with its graph; otherwise a leaf, which is the same in all passes.
        """
        if x._version != self._versions.setdefault(id(x), x._version):
            raise RuntimeError("the layers above the cut changed, in place, what the layers below put out")
        if joined or not x.requires_grad:
            return x
        if id(x) not in self._detached:
            self._detached[id(x)] = x.detach().requires_grad_()
        return self._detached[id(x)]

    def owed(self) -> list[tuple[Tensor, Tensor]]:
        """(tensor, gradient) of what backwards left at the cut, which is then forgotten."""
        found = {id(x): x for output in self.outputs for x in output.leaves if isinstance(x, Tensor)}
        pairs = [(found[key], leaf.grad) for key, leaf in self._detached.items() if leaf.grad is not None]
        self._detached.clear()
        return pairs


class _Crossed(Exception):
    """Raised to end a forward of the layers below."""


class Cut:
    """A cut through a model, below one run of one of its layers.

    Args:
        model: the unwrapped model.
        place: the lowest layer above the cut.
        asked: what the user asked for, for errors.

    Attributes:
        share: how much of the layers is above.
        has_looked: `look` was called, as it must be before anything else.
    """

    def __init__(self, model: nn.Module, place: Place, asked: str) -> None:
        self.share = place.share
        self._model, self._place, self._asked = model, place, asked
        self._kind = type(without_adapters(model)).__name__
        self._candidates = _outside(model, place.layer)
        self._grows: list[list[bool]] | None = None  # which tensors are one for each example
        self.has_looked = self._measured = False

    def look(self, run: Run, inputs: Mapping[str, Any], running: RunningBuffers | None) -> None:
        """Compare, in evaluation and without a trace, a pass from the cut with a whole one.

        Args:
            run: inputs -> (loss, logits), of the unwrapped model.
            inputs: of the model, the first ones.
            running: the buffers that a forward of the model changes.

        Raises:
            ValueError: they have other logits.
        """
        device = next(iter(batch_tensors(inputs).values())).device
        if running is not None:  # learn them in a whole pass: those from the cut never change those below
            with without_trace(self._model, device, evaluation=False), running.keep():
                run(dict(inputs))
        with without_trace(self._model, device):
            whole = run(dict(inputs))[1]
            once = self.below(run, inputs)
            with self.above(once, 1, None, joined=True):
                again = run(dict(inputs))[1]
            twice = None if find_uneven(inputs) else self.below(run, tile(inputs, 2))
        rough = whole.dtype in (torch.float16, torch.bfloat16)
        if whole.shape != again.shape or not near(whole, again, 2e-2 if rough else 1e-4):
            raise ValueError(
                f"{self._asked}: {self._kind} puts out other logits if the modules below {self._place.name} are not "
                "run again: something of it passes the cut unseen; leave top out"
            )
        if twice is not None and not _is_one_for_each(once.hidden, twice.hidden):
            raise ValueError(f"{self._asked}: what enters {self._place.name} of {self._kind} is not batch-first")
        self.has_looked = True
        self._grows = None if twice is None else _growing(once, twice)

    @property
    def can_copy(self) -> bool:
        """Whether a pass may run several copies of a batch from the cut."""
        return self._grows is not None

    def below(self, run: Run, inputs: Mapping[str, Any]) -> Crossing:
        """Run the layers below, in the mode and precision that hold.

        Args:
            run: inputs -> (loss, logits), of the unwrapped model; it does not come to an end.
            inputs: of the model.
        """
        crossing, layer = Crossing(), self._place.layer
        runs, depth = 0, 0

        def wrap(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def recorded(*args: Any, **kwargs: Any) -> Any:
                nonlocal runs, depth
                if depth:
                    return forward(*args, **kwargs)
                if module is layer:
                    runs += 1
                    if runs > self._place.run:
                        crossing.hidden = self._find_hidden(crossing, args, kwargs)
                        raise _Crossed
                depth += 1
                try:
                    put_out = forward(*args, **kwargs)
                finally:
                    depth -= 1
                crossing.outputs.append(Output(module, *tree_flatten(put_out)))
                return put_out

            return recorded

        # What checkpoints the layer's activations must not be left by an exception.
        checkpoints = vars(layer).get("gradient_checkpointing")
        try:
            if checkpoints:
                layer.gradient_checkpointing = False  # type: ignore[assignment]
            with self._patched(wrap), suppress(_Crossed):
                run(dict(inputs))
        finally:
            if checkpoints:
                layer.gradient_checkpointing = checkpoints
        if crossing.hidden is None:
            raise ValueError(f"{self._asked}: {self._kind} did not run its {self._place.name}")
        return crossing

    @contextmanager
    def above(self, crossing: Crossing, copies: int, move: Tensor | None, joined: bool) -> Iterator[None]:
        """A pass inside runs what is above.

        Args:
            crossing: of the layers below, for the same inputs.
            copies: how many copies of the batch the pass runs.
            move: (copies * batch, time, dim), added to what crosses.
            joined: the pass's backward goes on down through the layers below.
        """
        place, given = self._place, {}
        turn = runs = 0
        reached = False

        def give(x: Any, i: int, j: int) -> Any:
            if not isinstance(x, Tensor):
                return x
            if id(x) not in given:
                stands = crossing.tensor(x, joined)
                if copies > 1 and self._grows is not None and self._grows[i][j]:
                    stands = stands.repeat(copies, *[1] * (x.dim() - 1))
                if x is crossing.hidden and move is not None:
                    stands = self._moved(stands, move)
                given[id(x)] = stands
            return given[id(x)]

        def wrap(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def replayed(*args: Any, **kwargs: Any) -> Any:
                nonlocal turn, runs, reached
                if module is place.layer and runs == place.run:
                    reached = True
                runs += module is place.layer
                if runs > place.runs:
                    raise RuntimeError(
                        f"{self._asked}: a pass runs {place.name} of {self._kind} more often than one forward of the "
                        "model; run the model once in the loss"
                    )
                if reached:
                    return forward(*args, **kwargs)
                if turn == len(crossing.outputs) or crossing.outputs[turn].module is not module:
                    raise RuntimeError(f"{self._asked}: {self._kind} runs other modules in each pass; leave top out")
                output = crossing.outputs[turn]
                leaves = [give(x, turn, j) for j, x in enumerate(output.leaves)]
                turn += 1
                return tree_unflatten(leaves, output.spec)

            return replayed

        with self._patched(wrap):
            yield
        if not reached:
            raise RuntimeError(f"{self._asked}: a pass never reached the {place.name} of {self._kind}")

    def _find_hidden(self, crossing: Crossing, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        enters = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(enters, Tensor) and any(x is enters for output in crossing.outputs for x in output.leaves):
            return enters
        raise ValueError(
            f"{self._asked}: what enters {self._place.name} of {self._kind} is not what a module before it puts out, "
            "so the model cannot be cut there"
        )

    def _moved(self, hidden: Tensor, move: Tensor) -> Tensor:
        moved = (hidden + move).to(hidden.dtype)  # the move is fp32, hence the sum too
        if hidden.dtype in (torch.float16, torch.bfloat16) and not self._measured and move.detach().any():
            self._measured = True
            felt = (moved.float() - hidden.float()).detach()
            tell_what_is_lost(move.detach(), felt, f"that enters {self._place.name} of {self._kind}")
        return moved

    @contextmanager
    def _patched(self, wrap: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
        own = [(module, vars(module).get("forward")) for module in self._candidates]
        try:
            for module in self._candidates:
                module.forward = wrap(module, module.forward)
            yield
        finally:
            for module, forward in own:
                vars(module).pop("forward", None)
                if forward is not None:
                    module.forward = forward


def _outside(model: nn.Module, layer: nn.Module) -> list[nn.Module]:
    """The layer, and the outermost modules that do not hold it: what a forward runs before and after it."""
    holds = {id(m) for m in model.modules() if any(inner is layer for inner in m.modules()) and m is not layer}
    found: dict[int, nn.Module] = {}
    left = [model]
    while left:
        for child in left.pop().children():
            # A list of modules does not run; its modules do.
            if id(child) in holds or isinstance(child, (nn.ModuleList, nn.ModuleDict)):
                left.append(child)
            else:
                found[id(child)] = child
    return list(found.values())


def _growing(once: Crossing, twice: Crossing) -> list[list[bool]] | None:
    """Of each tensor, whether it has a row for each example; None where one has something else."""
    grows = []
    for one, two in zip(once.outputs, twice.outputs, strict=True):
        of_each = []
        for few, many in zip(one.leaves, two.leaves, strict=True):
            of_each.append(_is_one_for_each(few, many))
            if isinstance(few, Tensor) and not of_each[-1] and few.shape != many.shape:
                return None
        grows.append(of_each)
    return grows


def _is_one_for_each(few: Any, many: Any) -> bool:
    """Whether something is a tensor of a row for each example, by what it is for twice as many examples."""
    return isinstance(few, Tensor) and few.dim() > 0 and many.shape == (2 * len(few), *few.shape[1:])

"""The weights themselves as a place where a perturbation enters: forwards run with w + e in the place of w.

The weights are never written to. A moved pass reads `w + e`, built anew in the graph, so that its backward leaves in w
the gradient at w + e, groups of losses at other weights may wait for one backward, and w is what it was, bit for bit,
whatever happens in between. `w + e` is no leaf, so autocast keeps no cast of it, and finds none of w for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from hf_rat.passes.sites.base import Site, tell_what_is_lost
from hf_rat.passes.sites.geometry import Geometry

WEIGHTS = "weights"
MIXED = "mixed weights"

Pass = tuple[Tensor | None, Tensor]
Run = Callable[[dict[str, Any]], Pass]


def is_weights(name: str) -> bool:
    """Whether a site of that name is at the weights: "weights", or some of them as "weights:PATTERN"."""
    return name.partition(":")[0] in (WEIGHTS, MIXED)


def at_weights(moves: Mapping[str, Tensor], run: Run, open_site: Callable[[str], Any]) -> Run:
    """`run` at other weights.

    Args:
        moves: site of weights -> how far they are moved there, (1, weights).
        run: inputs -> (loss, logits).
        open_site: name of a site -> the site.
    """
    for name, move in moves.items():
        run = open_site(name).moving(run, move)
    return run


@dataclass
class WeightsGeometry(Geometry):
    """Of all weights at the site, which are one example, (1, weights).

    Args:
        sizes: how many numbers each tensor has, in their order.
    """

    sizes: Sequence[int] = ()

    def values(self) -> Tensor:
        """(1, weights), as they are."""
        assert self.own is not None
        return self.own()

    def per_tensor(self, of_each: Tensor) -> Tensor:
        """(1, tensors) -> (1, weights): each number at all places of its tensor."""
        sizes = torch.tensor(self.sizes, device=of_each.device)
        return of_each.repeat_interleave(sizes, dim=1, output_size=self.shape[1])


class WeightsSite(Site):
    """What of a model's weights is trained, in the order of `model.named_parameters()`; tied weights are one tensor.

    A move is (1, weights), of all of them in one row, in fp32 (in fp64 where a weight is).

    Args:
        model: the unwrapped model.
        pattern: which weights, by their names in `model.named_parameters()`: "*.query.weight", or with "!" in front
            all others.

    Attributes:
        parameters: name -> weight.
        centre: (1, weights), what training began with, where something asks for it; see engine/weight_memory.py.
        direction: (1, weights), a momentum of slopes, where something asks for it.
        hear: called with each slope of a momentum.

    Raises:
        ValueError: nothing is trained, or no trained weight has such a name.
    """

    def __init__(self, model: nn.Module, pattern: str = "*") -> None:
        super().__init__(model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError(f'site="weights": nothing of {type(model).__name__} is trained, so nothing can be moved')
        wanted, others = pattern.removeprefix("!"), pattern.startswith("!")
        self.parameters = {name: p for name, p in trained.items() if fnmatchcase(name, wanted) != others}
        if not self.parameters:
            near = difflib.get_close_matches(wanted.strip("*."), trained, n=1, cutoff=0.1)
            raise ValueError(
                f'site="weights:{pattern}": no weight that is trained in {type(model).__name__} has such a name '
                f"(one that has another: {near[0] if near else next(iter(trained))})"
            )
        if any(getattr(module, "sparse", False) for module in model.modules() if isinstance(module, nn.Embedding)):
            raise ValueError(
                f'site="weights": {type(model).__name__} has embeddings of sparse gradients; set sparse=False'
            )
        index = {id(p): place for place, p in enumerate(self.parameters.values())}
        self._owners = [
            (module, name, index[id(p)])
            for module in model.modules()
            for name, p in module._parameters.items()
            if p is not None and id(p) in index
        ]
        self.sizes = [p.numel() for p in self.parameters.values()]
        self.centre: Tensor | None = None
        self.direction: Tensor | None = None
        self.hear: Callable[[Tensor], None] = lambda slope: None
        self._reached = self._measured = False

    def close(self) -> None:
        """There is no hook."""

    def geometry(self, inputs: Mapping[str, Any]) -> WeightsGeometry:
        device = next(iter(self.parameters.values())).device
        shape = (1, sum(self.sizes))
        return WeightsGeometry(shape, device, embedding_norm=None, own=self.values, sizes=tuple(self.sizes))

    def values(self) -> Tensor:
        """(1, weights), a copy of the weights as they are."""
        return self.flat([p.detach() for p in self.parameters.values()])

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """(1, weights), on the device of the first weight."""
        device = tensors[0].device
        pieces = [x.flatten().to(device, torch.promote_types(x.dtype, torch.float32)) for x in tensors]
        return torch.cat(pieces).unsqueeze(0)

    def split(self, flat: Tensor) -> list[Tensor]:
        """The parts of a (1, weights), of the shapes and on the devices of the weights; one node of a graph."""
        pieces = flat.view(-1).split(self.sizes)
        return [x.view(p.shape).to(p.device) for x, p in zip(pieces, self.parameters.values(), strict=True)]

    def moving(self, run: Run, move: Tensor) -> Run:
        """`run` at moved weights, with all that activation checkpointing runs again of it in the backward.

        Args:
            run: inputs -> (loss, logits).
            move: (1, weights).
        """
        seen: list[list[Tensor]] = []

        def at_moved_weights(inputs: dict[str, Any]) -> Pass:
            now = self._now()
            if not seen or any(a is not b for a, b in zip(seen[0], now, strict=True)):
                seen[:] = [now, self._moved(now, move)]
            with self._in_place(seen[1]), _recomputing(lambda: self._in_place(seen[1])):
                result = run(inputs)
            self._require_reached(result, seen[1])
            return result

        return at_moved_weights

    def _now(self) -> list[Tensor]:
        """The weights, as another site of weights may have moved them."""
        places = {place: module._parameters[name] for module, name, place in self._owners}
        return [places[place] for place in range(len(places))]  # type: ignore[misc]

    def _moved(self, now: list[Tensor], move: Tensor) -> list[Tensor]:
        moved = [
            self._at(w, e, place).to(w.dtype) for place, (w, e) in enumerate(zip(now, self.split(move), strict=True))
        ]
        if not self._measured and move.any():
            self._measured = True
            self._tell_what_rounding_takes(now, moved, move)
        return moved

    def _at(self, weight: Tensor, move: Tensor, place: int) -> Tensor:
        # In fp32 at least: a small move vanishes in a half precision sum.
        return weight + move

    @torch.no_grad()
    def _tell_what_rounding_takes(self, now: list[Tensor], moved: list[Tensor], move: Tensor) -> None:
        if not any(w.dtype in (torch.float16, torch.bfloat16) for w in now):
            return
        asked = self.flat([self._at(w, e, i) - w for i, (w, e) in enumerate(zip(now, self.split(move), strict=True))])
        felt = self.flat([m.float() - w.float() for m, w in zip(moved, now, strict=True)])
        tell_what_is_lost(asked, felt, f"of the weights of {type(self.model).__name__}")

    @contextmanager
    def _in_place(self, tensors: list[Tensor]) -> Iterator[None]:
        """The modules read these tensors inside."""
        before = [module._parameters[name] for module, name, _ in self._owners]
        try:
            for module, name, place in self._owners:
                module._parameters[name] = tensors[place]  # type: ignore[assignment]
            yield
        finally:
            for (module, name, _), parameter in zip(self._owners, before, strict=True):
                module._parameters[name] = parameter

    def _require_reached(self, result: Pass, moved: list[Tensor]) -> None:
        """Refuse a model that reads a weight from elsewhere than its module: its pass ran where it was not moved."""
        if self._reached or not torch.is_grad_enabled():
            return
        names = {id(p): name for name, p in self.parameters.items()}
        ends = {x.grad_fn for x in moved}
        seen, left, found = set(), [x.grad_fn for x in result if x is not None], False
        while left:
            node = left.pop()
            found = found or node in ends
            if node is None or node in ends or node in seen:
                continue
            seen.add(node)
            name = names.get(id(getattr(node, "variable", None)))
            if name is not None:
                raise ValueError(
                    f'site="weights": {type(self.model).__name__} reads {name} from elsewhere than the module that '
                    f'holds it, where no move reaches it; leave it out, for instance with site="weights:!{name}"'
                )
            left += [following for following, _ in node.next_functions]
        if not found:
            raise ValueError(
                f'site="weights": no moved weight of {type(self.model).__name__} is in the graph of its loss; it may '
                "run the model in mini-batches of its own (cached losses); use one that runs it in its forward"
            )
        self._reached = True


class MixedWeightsSite(WeightsSite):
    """The same weights, of which a move is the share that they go towards their centre: w + move (centre - w)."""

    def _at(self, weight: Tensor, move: Tensor, place: int) -> Tensor:
        if self.centre is None:
            raise RuntimeError("there is no centre that the weights could go to; Regularization takes it")
        return weight + move * (self.split(self.centre)[place] - weight)


@contextmanager
def _recomputing(inside: Callable[[], Any]) -> Iterator[None]:
    """What activation checkpointing runs again of a forward in here, in its backward, runs inside of `inside()`."""
    usual: Any = checkpoint._checkpoint_without_reentrant_generator

    def generator(function: Callable[..., Any], *settings: Any, **kwargs: Any) -> Any:
        def again(*args: Any, **arguments: Any) -> Any:
            with inside(), _recomputing(inside):
                return function(*args, **arguments)

        return usual(again, *settings, **kwargs)

    checkpoint._checkpoint_without_reentrant_generator = generator  # type: ignore[assignment]
    try:
        yield
    finally:
        checkpoint._checkpoint_without_reentrant_generator = usual

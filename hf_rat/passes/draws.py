"""What a model draws at random in a training forward, found by watching it: no list of layers can know.

Copies of a batch in one forward have random numbers of their own where each example has. What is drawn once for the
whole batch (a mask on a weight, the words that are dropped, whether a layer runs at all) is shared by all copies, and
differs between the parts of a batch that is split by length. Where it cannot be told, it counts as shared: passes that
run one by one cost some time, and are right.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_rat.passes.copies import find_uneven, tile
from hf_rat.passes.dropout import RandomState, same_state, torch_state, without_trace
from hf_rat.passes.execution import Run

ROWS = 2
"""So many examples are watched, and twice as many."""

REPEATS = 3
"""Forwards from one state of the generators that must not differ."""

# Generator -> how its state is read, and set.
_KINDS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    np.random.Generator: (lambda g: g.bit_generator.state, lambda g, state: setattr(g.bit_generator, "state", state)),
    np.random.RandomState: (np.random.RandomState.get_state, np.random.RandomState.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
}


class Draws(NamedTuple):
    """Of a training forward, in words.

    Attributes:
        shared: the random numbers that the examples of a batch share, or may share; None where each has its own.
        unrepeatable: what is drawn from something else than the global generators, and cannot be drawn again.
    """

    shared: str | None
    unrepeatable: str | None


def find_draws(run: Run, inputs: Mapping[str, Any], model: nn.Module, device: torch.device) -> Draws:
    """Run a few small training forwards without gradients, leave no trace of them, and compare what they drew.

    Args:
        run: inputs -> (loss, logits); nothing in it is wrapped or compiled.
        inputs: of the model. Where they cannot be copied (`find_uneven`), only what cannot be repeated is sought.
        model: what `run` runs, in training mode.
        device: where it runs.
    """
    whole = find_uneven(inputs)
    few = {name: x[:ROWS] if isinstance(x, Tensor) and x.dim() and not whole else x for name, x in inputs.items()}
    try:
        same = [_watched(run, few, model, device) for _ in range(REPEATS)]
        twice = same[0] if whole else _watched(run, tile(few, 2), model, device)
    except Exception as error:  # whatever a model that nobody knows makes of a part of its batch
        return Draws(f"it cannot be watched ({type(error).__name__}: {' '.join(str(error).split())[:200]})", None)
    first = same[0]
    unrepeatable = first.own or _kept_generator(same)
    if unrepeatable is None and not all(_alike(first.logits, one.logits) for one in same[1:]):
        unrepeatable = "two forwards from one state of the generators of torch, numpy and Python differ"
    shared = whole or first.unclear or twice.unclear or unrepeatable or _shared(first.drawn, twice.drawn)
    return Draws(shared, unrepeatable)


def _shared(once: list[tuple[str, int]], twice: list[tuple[str, int]]) -> str | None:
    """What does not become twice as much with twice as many examples."""
    if [name for name, _ in once] != [name for name, _ in twice]:
        return "it draws in another way for another number of examples"
    for (name, few), (_, many) in zip(once, twice, strict=True):
        if many != 2 * few:
            return f"{name} draws {few} numbers for some examples and {many} for twice as many"
    return None


def _kept_generator(forwards: list[_Watch]) -> str | None:
    """A torch.Generator that is there from one forward to the next, and goes on."""
    first, second = ({id(g) for g, _ in one.generators} for one in forwards[:2])
    return "it draws from a torch.Generator of its own" if first & second else None


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


class _Watch(TorchDispatchMode):
    """Sees the random operators inside.

    Attributes:
        drawn: (operator, how many numbers it put out) in turn.
        unclear: why these do not tell all.
        own: a generator that is none of the global ones, and went on.
        generators: of torch, that operators were given, and their states before.
        logits: of the forward.
    """

    logits: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.drawn: list[tuple[str, int]] = []
        self.unclear: str | None = None
        self.own: str | None = None
        self.generators: list[tuple[torch.Generator, Tensor]] = []
        self._device, self._state = device, torch_state(device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.look_aside()
        given = kwargs.get("generator")
        if given is not None and not any(given is known for known, _ in self.generators):
            self.generators.append((given, given.get_state()))
        out = func(*args, **kwargs)
        state = torch_state(self._device)
        if torch.Tag.nondeterministic_seeded in func.tags or not same_state(state, self._state):
            numbers = next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
            self.drawn.append((str(func), numbers.numel()))
            if not (numbers.is_floating_point() or numbers.dtype == torch.bool):
                self.unclear = f"{func} draws whole numbers, with which it may choose among the examples"
        self._state = state
        return out

    def look_aside(self) -> None:
        """Whether somebody drew since the last operator."""
        if not same_state(torch_state(self._device), self._state):
            self.unclear = "something that is no operator of torch uses torch's generator"


def _watched(run: Run, inputs: dict[str, Any], model: nn.Module, device: torch.device) -> _Watch:
    with without_trace(model, device, evaluation=False), _own_generators(model) as moved:
        before = RandomState(device)
        with _Watch(device) as watch:
            watch.logits = run(dict(inputs))[1].detach().float()
        watch.look_aside()
        who = RandomState(device).moved(before)
        if who in ("Python", "numpy"):
            watch.unclear = f"it draws from the generator of {who}, and whether for each example cannot be seen"
        if moved():
            watch.own = "it draws from a generator of its own"
        for generator, state in watch.generators:
            generator.set_state(state)
    return watch


@contextmanager
def _own_generators(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Generators of numpy and Python in the modules, or in the files that define them, are put back at the end.

    Yields: whether one of them went on.
    """
    files = {id(file): file for file in map(_file, model.modules())}
    places = [*map(vars, model.modules()), *files.values()]
    found = [value for place in places for value in place.values() if type(value) in _KINDS]
    kept = [(generator, _KINDS[type(generator)][0](generator)) for generator in found]

    def moved() -> bool:
        return any(pickle.dumps(_KINDS[type(g)][0](g)) != pickle.dumps(state) for g, state in kept)

    try:
        yield moved
    finally:
        for generator, state in kept:
            _KINDS[type(generator)][1](generator, state)


def _file(module: nn.Module) -> dict[str, Any]:
    return vars(sys.modules[type(module).__module__]) if type(module).__module__ in sys.modules else {}

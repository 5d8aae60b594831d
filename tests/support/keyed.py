"""Dropout and noise that know an example by its content, so that they do not depend on how examples are grouped.

Every dropout and every draw of noise takes one key from torch's generator, reseeded at each micro-batch: key k
is then the same for the k-th draw (a layer of a pass) of every micro-batch of every process. A number is a hash of the
example's tokens, that key, the position inside the example, and which copy of the example it is in a tiled batch.
Because the keys come from torch's generator, replayed masks and activation checkpointing, which restore its state, get
the same masks again.
"""

import contextlib
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from hf_rat import Regularization, RegularizedTrainer
from hf_rat.engine.probes import PassProbe
from hf_rat.engine.weight_memory import WeightMemory
from hf_rat.passes.below import Below
from hf_rat.passes.cut import Cut
from hf_rat.passes.draws import Draws
from hf_rat.passes.point import Point
from hf_rat.regularizers import balls, perturbations, weight_balls, weight_perturbations

LONGEST = 24
"""Numbers are drawn for this many positions and cut, so that they do not depend on the padding either."""

TORCH_DROPOUT = torch.nn.functional.dropout
"""The original."""

_examples: list[Tensor] = [torch.zeros(1, dtype=torch.int64)]


def begin(input_ids: Tensor, attention_mask: Tensor) -> None:
    """A new micro-batch, of these examples; no two of them may be equal."""
    examples = _identified(input_ids, attention_mask)
    assert len(set(examples.tolist())) == len(examples), "two equal examples would get equal masks"
    _examples[0] = examples
    torch.manual_seed(0)


def _identified(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    powers = torch.tensor([pow(1_000_003, k, 2**31) for k in range(input_ids.shape[1])], device=input_ids.device)
    return (input_ids * attention_mask * powers).sum(-1)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)


# One operator, so that a compiled graph holds one node for it.
@torch.library.custom_op("hf_rat_tests::keyed", mutates_args=())
def _numbers(key: Tensor, examples: Tensor, shape: list[int]) -> Tensor:
    row = torch.arange(shape[0], device=key.device)
    # (batch, time, dim), or attention's (batch, heads, time, time); the other shapes have no time.
    cut = {3: (1,), 4: (2, 3)}.get(len(shape), ())
    full = [LONGEST if axis in cut else size for axis, size in enumerate(shape)][1:]
    rows = _mixed(examples[row % examples.shape[0]] + _mixed(key + row // examples.shape[0]))
    numbers = _mixed(rows[:, None] + _mixed(torch.arange(math.prod(full), device=key.device)))
    numbers = (((numbers & 0xFFFFFF).float() + 0.5) / 2**24).view(shape[0], *full)
    for axis in cut:
        numbers = numbers.narrow(axis, 0, shape[axis])
    return numbers.contiguous()


@_numbers.register_fake
def _(key: Tensor, examples: Tensor, shape: list[int]) -> Tensor:
    return key.new_empty(shape, dtype=torch.float32)


def uniform(shape: Sequence[int]) -> Tensor:
    """Numbers in (0, 1) of this shape, whose first axis is examples, or several copies of them one after the other."""
    return _numbers(torch.randint(2**62, ()).to(_examples[0].device), _examples[0], list(shape))


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In the place of torch.nn.functional.dropout."""
    if has_torch_function_unary(input):
        return handle_torch_function(dropout, (input,), input, p=p, training=training, inplace=inplace)
    if not training or p == 0:
        return input
    return input * (uniform(input.shape) >= p).to(input.dtype) / (1 - p)


def draw(kind: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """In the place of hf_rat.regularizers.balls.draw."""
    if kind == "uniform":
        return 2 * uniform(shape) - 1
    return (-2 * uniform(shape).log()).sqrt() * (2 * math.pi * uniform(shape)).cos()


def _as_if_nothing_was_drawn(look):
    """What happens before the first micro-batch of a step leaves its examples and their keys as they were."""

    def looked(*args, **kwargs):
        examples = _examples[0]
        look(*args, **kwargs)
        _examples[0] = examples
        torch.manual_seed(0)

    return looked


@contextlib.contextmanager
def noise():
    """Dropout and noise are keyed inside."""
    with pytest.MonkeyPatch.context() as patch:
        # A key is drawn for the whole batch, but each example and each copy of it has numbers of its own.
        patch.setattr(PassProbe, "_draws", lambda self, inputs: Draws(None, None))
        patch.setattr(torch.nn.functional, "dropout", dropout)
        for before, method in ((Regularization, "begin_step"), (WeightMemory, "_start")):
            patch.setattr(before, method, _as_if_nothing_was_drawn(getattr(before, method)))
        for module in (balls, perturbations, weight_balls, weight_perturbations):
            patch.setattr(module, "draw", draw)
        yield


@contextlib.contextmanager
def by_bucket():
    """The buckets of one forward take the same keys, each for its own examples. Inside of `noise()`."""
    start: list[Tensor] = []

    def begins(original):
        def begun(self, *args, **kwargs):
            start[:] = [torch.get_rng_state()]
            return original(self, *args, **kwargs)

        return begun

    def of_bucket(original, place):
        def run(self, *args):
            batch, ids = _examples[0], args[place]["input_ids"]
            _examples[0] = _identified(ids, args[place].get("attention_mask", torch.ones_like(ids)))
            _examples[0] = _examples[0][: len(set(_examples[0].tolist()))]  # of one copy
            torch.set_rng_state(start[0])
            try:
                return original(self, *args)
            finally:
                _examples[0] = batch

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Point, "_forward", begins(Point._forward))
        patch.setattr(Point, "_forward_perturbed", of_bucket(Point._forward_perturbed, 0))
        patch.setattr(Below, "__init__", begins(Below.__init__))
        patch.setattr(Cut, "below", of_bucket(Cut.below, 1))
        yield


class KeyedTrainer(RegularizedTrainer):
    """Tells the generator when a micro-batch begins."""

    def _prepare_inputs(self, inputs):
        if "labels" in inputs and self.model.training:
            begin(inputs["input_ids"], inputs["attention_mask"])
        return super()._prepare_inputs(inputs)

    def training_step(self, model, inputs, *args, **kwargs):
        begin(inputs["input_ids"], inputs["attention_mask"])
        return super().training_step(model, inputs, *args, **kwargs)

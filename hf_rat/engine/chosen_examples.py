"""Which examples a regularizer is asked of, where that is a part of a micro-batch, and whether it may be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_rat.engine.engine import Engine
from hf_rat.passes.copies import find_uneven, near
from hf_rat.passes.dropout import without_trace
from hf_rat.passes.execution import Pass
from hf_rat.passes.part import Part, take
from hf_rat.passes.problems import count_labels, is_labelled, losses_of_examples
from hf_rat.passes.sites.base import batch_tensors
from hf_rat.regularizers.terms import Term, all_terms


class ChosenExamples:
    """Chooses at random by a stream of its own, so that dropout draws what it draws without.

    A choice depends on the seed of the run, the process and how many choices came before; nothing else.

    Args:
        regularizer: the term.
        engine: of the run.
        run: (model, inputs) -> (task loss, logits).

    Raises:
        ValueError: the model takes statistics over a batch.
    """

    def __init__(self, regularizer: Term, engine: Engine, run: Callable[[nn.Module, dict[str, Any]], Pass]) -> None:
        self._regularizer, self._engine, self._model = regularizer, engine, engine.unwrapped
        self._parts: set[Part] = {term.part for term in all_terms(regularizer) if term.part is not None}
        self._run = partial(run, self._model)
        self._checked = self._told = not self._parts
        self._seed: int | None = None
        self._choices = 0
        coupled = next((m for m in self._model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None)
        if self._parts and coupled is not None:
            self._refuse(f"the {type(coupled).__name__} of {type(self._model).__name__} couples those of a batch")

    def permute(self, size: int) -> Tensor:
        """(size,) int64: the next random order."""
        if self._seed is None:
            self._seed = torch.initial_seed()
        rank = torch.distributed.get_rank() if self._engine.processes > 1 else 0
        order = np.random.default_rng((self._seed, rank, self._choices)).permutation(size)
        self._choices += 1
        return torch.from_numpy(order)

    def require(self, inputs: Mapping[str, Any], problem: Callable[[], str]) -> None:
        """Refuse a batch, or on the first one a model, whose loss over a part would not be right.

        Args:
            inputs: a micro-batch.
            problem: the kind of task.

        Raises:
            ValueError: rows of the batch cannot be taken; the loss is no mean over the examples; or nobody can tell
                the loss of an example, and the hardest are asked for.
        """
        if not self._parts:
            return
        if because := find_uneven(inputs):
            self._refuse(f"nobody can tell them: {because}")
        first = _first(inputs)
        size, device = len(first), first.device
        if not self._told and size > 0 and all(part.count(size) == size for part in self._parts):
            self._told = True
            warnings.warn(
                f"{self._regularizer!r}: of a micro-batch of {size} at least one is chosen, which is all: nothing is "
                "saved; make micro-batches larger",
                stacklevel=4,
            )
        # All processes look together.
        if not self._checked and bool(self._engine.everywhere(torch.tensor([size > 1], device=device)).all()):
            self._checked = True
            found = [self._find_coupling(inputs, problem), self._find_unknown(inputs, problem)]
            fine = torch.tensor([because is None for because in found], device=device)
            for because, holds in zip(found, self._engine.everywhere(fine).tolist(), strict=True):
                if not holds:
                    self._refuse(because or "another process refuses it")

    def state_dict(self) -> dict[str, int | None]:
        """What a checkpoint must keep to go on with the same choices."""
        return {"seed": self._seed, "choices": self._choices}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._seed, self._choices = state.get("seed"), int(state.get("choices", 0))

    def _refuse(self, because: str) -> None:
        raise ValueError(f"{self._regularizer!r} is asked of some of the examples, and {because}; leave out examples")

    def _find_coupling(self, inputs: Mapping[str, Any], problem: Callable[[], str]) -> str | None:
        """Why a mean over parts is not that over the batch: two halves are compared with it, in evaluation."""
        name = type(self._model).__name__
        try:
            loss, logits = self._look(inputs)
            rows = torch.arange(len(_first(inputs)), device=_first(inputs).device)
            halves = [take(inputs, half) for half in rows.chunk(2)]
            looks = [self._look(half) for half in halves]
        except Exception as error:  # whatever a model that nobody knows makes of a part of its batch
            return f"{name} cannot run half a batch ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        joined = torch.cat([part for _, part in looks])
        rough = logits.dtype in (torch.float16, torch.bfloat16)
        if joined.shape != logits.shape or not near(logits, joined, 1e-1 if rough else 1e-2):
            return f"the logits of {name} for one depend on the others of its batch"
        if loss is None or not is_labelled(inputs):
            return None
        counts = torch.stack([count_labels(problem(), half) for half in halves])
        means = torch.stack([half for half, _ in looks if half is not None])
        mean = torch.where(counts > 0, counts * means, 0.0).sum() / counts.sum()
        if not near(loss, mean, 2e-2 if rough else 1e-3):
            return (
                f"the loss of {name} is no mean over them: {float(loss):.4g} over the first batch, and "
                f"{float(mean):.4g} by its halves"
            )
        return None

    def _find_unknown(self, inputs: Mapping[str, Any], problem: Callable[[], str]) -> str | None:
        """Why the hardest examples cannot be told."""
        if all(part.which == "random" for part in self._parts) or not is_labelled(inputs):
            return None
        loss, logits = self._look(inputs)
        found = losses_of_examples(problem(), inputs, logits)
        if found is not None and loss is not None:
            losses, counts = found
            if near(loss, (losses * counts).sum() / counts.sum(), 2e-2):
                return None
        name = type(self._model).__name__
        return f"nobody can tell the hardest of them: the loss of {name} is none of the usual ones"

    def _look(self, inputs: Mapping[str, Any]) -> Pass:
        with without_trace(self._model, _first(inputs).device):
            return self._run(dict(inputs))


def _first(inputs: Mapping[str, Any]) -> Tensor:
    """A tensor of the batch, for its length and its device."""
    return next(iter(batch_tensors(inputs).values()))

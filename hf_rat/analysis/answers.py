"""What a model answers to labelled batches, example by example: at the batch itself, and at points beside it.

A point lies a move away, at a site of `hf_rat.passes`: something that is added to the embeddings, or a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_rat.passes.batch import Batch
from hf_rat.passes.dropout import without_trace
from hf_rat.passes.execution import Execution, Pass
from hf_rat.passes.outputs import logits_of, loss_of
from hf_rat.passes.part import take
from hf_rat.passes.plan import Plan
from hf_rat.passes.point import Point
from hf_rat.passes.problems import LABELS, losses_of_examples
from hf_rat.passes.recognition import REGRESSION, SINGLE, judge, recognize
from hf_rat.passes.sites import open_site

Moves = dict[str, Tensor]
"""site -> (batch, ...), how far a point lies from the batch."""


@dataclass(frozen=True)
class Answers:
    """To n examples.

    Args:
        losses: float64 (n,), the task loss of each as if it stood alone.
        right: bool (n,), whether the largest logit is that of the label; None of a regression.
    """

    losses: np.ndarray
    right: np.ndarray | None

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Those to several batches, one after the other."""
        rights = [part.right for part in parts if part.right is not None]
        return cls(np.concatenate([part.losses for part in parts]), np.concatenate(rights) if rights else None)


def answers_of(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    find: Callable[[Batch, int], Sequence[Moves]] = lambda batch, index: [{}],
    site: str | None = None,
) -> list[Answers]:
    """Ask a model, in evaluation mode, about examples as they are, or moved.

    Args:
        model: returns a loss and logits; a classifier with one label for each example, or a regression. It stays as it
            is: its mode, weights and gradients; the random numbers too.
        batches: its inputs with labels, on its device.
        find: (batch, its number) -> the points where it is asked; the default asks at the batch itself.
        site: where the moves are.

    Returns:
        The answers to all examples at the first point, the second one, and so on.

    Raises:
        ValueError: no batches or no labels, or the task is none of these.
    """
    if not batches:
        raise ValueError("batches=[]: there is nothing to ask the model about")
    found: list[list[Answers]] = []
    with _open(model, batches[0], site) as make:
        for index, inputs in enumerate(batches):
            batch = make(inputs)
            found.append([_answer(make, batch, moves) for moves in find(batch, index)])
    return [Answers.joined(parts) for parts in zip(*found, strict=True)]


@contextmanager
def _open(
    model: nn.Module, first: Mapping[str, Tensor], site: str | None
) -> Iterator[Callable[[Mapping[str, Tensor]], Batch]]:
    """Makes the batches of a model that is only looked at."""
    labels = next((first[name] for name in LABELS if first.get(name) is not None), None)
    if labels is None:
        raise ValueError(f"the batch has {', '.join(first)}: labels are needed")
    with ExitStack() as stack:
        stack.enter_context(without_trace(model, labels.device))
        # cuDNN has no backward of a recurrent layer in evaluation.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        loss, logits = _run(model, dict(first))
        rule = recognize(model, first)
        problem = (rule if rule.sure else judge(rule, labels, loss, logits)).problem
        if problem not in (SINGLE, REGRESSION):
            raise ValueError(f"{type(model).__name__} is a {problem}: one label for each example is needed")
        execution = Execution(run=partial(_run, model), open_site=lambda name: opened)
        if site is not None:
            opened = open_site(site, model)
            stack.callback(opened.close)
        stack.enter_context(torch.enable_grad())
        yield lambda inputs: Batch(dict(inputs), lambda: problem, execution)


def _run(model: nn.Module, inputs: dict[str, Any]) -> Pass:
    outputs = model(**inputs)
    return loss_of(outputs), logits_of(outputs, type(model).__name__)


def _answer(make: Callable[[Mapping[str, Tensor]], Batch], batch: Batch, moves: Moves) -> Answers:
    loss, logits = _at(batch, moves)
    found = losses_of_examples(batch.problem, batch.inputs, logits)
    if found is not None and torch.allclose(found[0].mean(), loss.float(), rtol=1e-3, atol=1e-6):
        losses = found[0]
    else:  # another loss than the usual one: each example's is that of the model itself
        rows = torch.arange(batch.size, device=batch.device).split(1)
        alone = [(make(take(batch.inputs, row)), {site: move[row] for site, move in moves.items()}) for row in rows]
        losses = torch.stack([_at(one, own)[0] for one, own in alone])
    right = None
    if batch.problem == SINGLE:
        right = (logits.argmax(-1) == batch.inputs["labels"].reshape(-1)).cpu().numpy()
    return Answers(losses.double().cpu().numpy(), right)


def _at(batch: Batch, moves: Moves) -> tuple[Tensor, Tensor]:
    """Loss and logits at a point."""
    with torch.no_grad():
        point = Point(batch, moves, plan=Plan(graph=False))
        return point.task, point.logits[0].float()

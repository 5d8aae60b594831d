"""What a model says to labelled batches: by itself, and in passes with dropout, each of which is a sub-model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rat.passes.dropout import without_trace
from hf_rat.passes.dropping_out import dropping_out, find_dropout
from hf_rat.passes.outputs import logits_of, loss_of
from hf_rat.passes.problems import PROBLEM_TYPES
from hf_rat.passes.recognition import REGRESSION, SINGLE, judge, recognize

Batches = Sequence[Mapping[str, Tensor]]
"""Inputs of a model, with "labels", on its device."""


@dataclass(frozen=True)
class Said:
    """To n examples.

    Args:
        logits: float64 (n, classes), of a regression (n, 1); on the CPU.
        labels: int64 (n,), of a regression float64.
    """

    logits: Tensor
    labels: Tensor

    @property
    def regression(self) -> bool:
        return self.labels.is_floating_point()

    def scores(self, logits: Tensor | None = None) -> dict[str, float]:
        """Accuracy, 0 to 1, and mean negative log-likelihood ("nll"); of a regression the mean squared error ("mse").

        Args:
            logits: others in the place of its own.
        """
        logits = self.logits if logits is None else logits
        if self.regression:
            return {"mse": float((logits[:, 0] - self.labels).square().mean())}
        return {
            "accuracy": float((logits.argmax(-1) == self.labels).double().mean()),
            "nll": float(F.cross_entropy(logits, self.labels)),
        }


def ask(model: nn.Module, batches: Batches) -> Said:
    """What a model says in evaluation. It stays as it is, and so do the random numbers.

    Args:
        model: a classifier with one label for each example, or a regression; it returns a loss and logits.
        batches: its inputs with labels.

    Raises:
        ValueError: there are no batches or no labels, or the task is another one.
    """
    problem = _problem(model, batches)
    with without_trace(model, _device(batches)):
        logits = _run(model, batches)
    labels = torch.cat([batch["labels"].detach().reshape(-1).cpu() for batch in batches])
    if problem == REGRESSION:
        return Said(logits, labels.double())
    return Said(logits, labels.long())


def ask_sub_models(model: nn.Module, batches: Batches, passes: int, asked: str, seed: int = 0) -> Tensor:
    """What it says in passes with dropout and all else as in evaluation. It stays as it is.

    Args:
        model: as in `ask`.
        batches: likewise.
        passes: how many.
        asked: what needs dropout, the beginning of an error.
        seed: of the masks.

    Returns:
        float64 (passes, n, classes), of a regression (passes, n, 1).

    Raises:
        ValueError: nothing in the model drops out.
    """
    found = find_dropout(model, batches[0], asked)
    with without_trace(model, _device(batches)), dropping_out(found):
        torch.manual_seed(seed)
        return torch.stack([_run(model, batches) for _ in range(passes)])


def _run(model: nn.Module, batches: Batches) -> Tensor:
    name = type(model).__name__
    said = [logits_of(model(**batch), name).detach().cpu().double() for batch in batches]
    return torch.cat([logits if logits.dim() == 2 else logits.reshape(len(logits), -1) for logits in said])


def _problem(model: nn.Module, batches: Batches) -> str:
    """SINGLE or REGRESSION."""
    if not batches:
        raise ValueError("batches=[]: there is nothing to ask the model about")
    first = dict(batches[0])
    if "labels" not in first:
        raise ValueError(f"the batch has {', '.join(first)}: labels are needed")
    with without_trace(model, _device(batches)):
        outputs = model(**first)
    rule = recognize(model, first)
    logits = logits_of(outputs, type(model).__name__)
    problem = (rule if rule.sure else judge(rule, first["labels"], loss_of(outputs), logits)).problem
    if problem not in (SINGLE, REGRESSION):
        raise ValueError(
            f"{type(model).__name__} is a {problem}: one label for each example is needed ({PROBLEM_TYPES[0]} or "
            f"{PROBLEM_TYPES[2]})"
        )
    return problem


def _device(batches: Batches) -> torch.device:
    return batches[0]["labels"].device

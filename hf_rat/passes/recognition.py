"""Which kind of task a batch is (see problems.py), by the rules of transformers' heads or by looking at one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_rat.passes.adapters import without_adapters
from hf_rat.passes.problems import CTC, MULTIPLE_CHOICE, NEXT_TOKENS, PROBLEM_TYPES, QUESTION_ANSWERING, TOKENS

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES

WAY_OUT = "give problem= (--reg_problem)"


class Recognized(NamedTuple):
    """A kind of task.

    Args:
        problem: one of `problems.PROBLEMS`.
        because: how it was found.
        sure: whether that is so whatever the task loss is.
    """

    problem: str
    because: str
    sure: bool = False


def recognize(model: object, inputs: Mapping[str, Any], shifted: bool = False) -> Recognized:
    """The kind of task, by the rules that transformers' heads follow, without running the model.

    Args:
        model: unwrapped. `config.problem_type` decides between the kinds of sequence classification when it is set;
            otherwise `config.num_labels == 1` makes a regression, floating point labels with more than one output
            are multi-label, and a regression if they are not all between 0 and 1.
        inputs: of the model. `start_positions` mean question answering, and integer labels (batch, time) one label per
            position, if another input is (batch, time, ...) too or the model is an encoder-decoder.
        shifted: the model shifts such labels: its output at a position predicts the label of the next one.

    Raises:
        ValueError: an unknown `config.problem_type`.
    """
    base = without_adapters(model)
    config = getattr(model, "config", None)
    given = getattr(config, "problem_type", None)
    if given is not None and given not in PROBLEM_TYPES:
        raise ValueError(f"config.problem_type is {given!r}; expected one of {', '.join(PROBLEM_TYPES)}")
    if "start_positions" in inputs:
        return Recognized(QUESTION_ANSWERING, "the batch has start_positions", True)
    if "ForCTC" in type(base).__name__:
        return Recognized(CTC, f"the model is a {type(base).__name__}", True)
    labels = inputs.get("shift_labels", inputs.get("labels"))
    # A column of labels, (batch, 1), is one label per example.
    several = isinstance(labels, Tensor) and labels.dim() > 1 and labels.shape[1:] != (1,)
    if several and given not in PROBLEM_TYPES[1:] and not labels.is_floating_point():
        if not _fit_positions(config, inputs, labels):
            if _between_0_and_1(labels):
                return Recognized(
                    MULTI, f"labels of 0 and 1, {tuple(labels.shape)}, and no input of as many positions"
                )
            return Recognized(CTC, f"no input has as many positions as the labels, {tuple(labels.shape)}")
        return by_position(shifted)
    if "MultipleChoice" in type(base).__name__:  # such heads ignore num_labels
        return Recognized(MULTIPLE_CHOICE, f"the model is a {type(base).__name__}", True)
    if given is not None:
        return Recognized(given, "config.problem_type", True)
    if getattr(config, "num_labels", 2) == 1:
        return Recognized(REGRESSION, "config.num_labels is 1")
    if isinstance(labels, Tensor) and labels.is_floating_point():
        if _between_0_and_1(labels):
            return Recognized(MULTI, "floating point labels")
        return Recognized(REGRESSION, "floating point labels outside of [0, 1]")
    return Recognized(SINGLE, "one integer label for each example" if labels is not None else "no labels")


def by_position(shifted: bool) -> Recognized:
    """One integer label for each position, whether or not the model shifts them."""
    shifts = "the task loss shifts them" if shifted else "the task loss does not shift them"
    return Recognized(NEXT_TOKENS if shifted else TOKENS, f"integer labels by position, and {shifts}")


def judge(rule: Recognized, labels: Tensor, loss: Tensor | None, logits: Tensor) -> Recognized:
    """The kind of task of a model that no rule need hold for, by one pass of it.

    A task loss that is one of the usual ones tells; else the shapes and the values of the labels do.

    Args:
        rule: what `recognize` says.
        labels: of the batch.
        loss: the task loss of one pass, if it is known.
        logits: of the same pass, (batch, ...).

    Raises:
        ValueError: two kinds are plausible.
    """
    if labels.dim() > 1 and labels.shape == logits.shape[:-1]:
        return rule if rule.problem in (TOKENS, NEXT_TOKENS) else _by_shape(TOKENS, labels, logits)
    if rule.problem in (TOKENS, NEXT_TOKENS, CTC) and logits.shape != labels.shape:
        # A time axis of its own.
        return _by_shape(CTC, labels, logits) if logits.dim() == 3 else rule
    width = 1 if logits.dim() == 1 or logits.shape[1:] == (1,) else logits.shape[-1]
    if width > 1 and not labels.is_floating_point() and labels.numel() == logits.shape[0]:
        return Recognized(SINGLE, f"one integer label for each example, and {width} logits")
    if logits.numel() != labels.numel():
        return rule
    pair = logits.float().reshape(labels.shape), labels.float()
    for problem, name, usual in _USUAL:
        if loss is None or (problem != REGRESSION and not _between_0_and_1(labels)):
            continue
        if problem == SINGLE and (width == 1 or not torch.allclose(pair[1].sum(-1), pair[1].new_ones(()))):
            continue
        if torch.allclose(usual(*pair), loss.float(), rtol=1e-3, atol=1e-6):
            return Recognized(problem, f"the task loss is the {name} of the logits")
    if not _between_0_and_1(labels):
        return Recognized(REGRESSION, "labels outside of [0, 1]")
    if rule.problem == REGRESSION:
        return rule
    sums_to_one = width > 1 and torch.allclose(pair[1].sum(-1), pair[1].new_ones(()))
    if not sums_to_one and bool(((labels == 0) | (labels == 1)).all()):
        return Recognized(MULTI, f"labels of 0 and 1 for {width} logit{'s' * (width > 1)}")
    if rule.sure:
        return rule
    others = f"{SINGLE}, {MULTI}" if sums_to_one else MULTI
    raise ValueError(
        f"the kind of task is unclear: labels between 0 and 1 and logits of shape {tuple(logits.shape)} could be "
        f"{others} or {REGRESSION}; {WAY_OUT}"
    )


_USUAL = (
    (MULTI, "binary cross-entropy", F.binary_cross_entropy_with_logits),
    (SINGLE, "cross-entropy", F.cross_entropy),
    (REGRESSION, "mean squared error", F.mse_loss),
    (REGRESSION, "mean absolute error", F.l1_loss),
    (REGRESSION, "Huber loss", F.smooth_l1_loss),
)


def _by_shape(problem: str, labels: Tensor, logits: Tensor) -> Recognized:
    return Recognized(problem, f"labels of shape {tuple(labels.shape)} and logits of shape {tuple(logits.shape)}")


def _between_0_and_1(labels: Tensor) -> bool:
    return bool(((labels >= 0) & (labels <= 1)).all())


def _fit_positions(config: object, inputs: Mapping[str, Any], labels: Tensor) -> bool:
    """Whether labels (batch, time) can be one for each position, rather than a sequence of their own."""
    others = [x for name, x in inputs.items() if "labels" not in name and isinstance(x, Tensor) and x.dim() > 1]
    if labels.dim() > 2 or not others or getattr(config, "is_encoder_decoder", False):
        return True
    return any(x.shape[:2] == labels.shape for x in others)

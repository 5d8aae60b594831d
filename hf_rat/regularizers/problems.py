"""The kinds of task: what a model's outputs are, which of them count, and how they are averaged.

The task loss is the model's own. This is what the rest must know to go with it:

    problem                       outputs                    a distribution over      what counts
    single_label_classification   (batch, classes)           the classes              every example
    multi_label_classification    (batch, labels)            present or absent        every example
    regression                    (batch, values)            none: squared difference every example
    multiple_choice               (batch, choices)           the choices              every example
    question_answering            (batch, 2, time)           the time steps           answers that begin (end) inside
    token_classification          (batch, time, classes)     the classes              labels other than -100
    causal_lm                     (batch, time, vocabulary)  the vocabulary           *next* labels other than -100

`token_classification` is every task with one label per position that the model does not shift: masked language models
and the decoders of encoder-decoders too. The last two are averaged over positions, the others over examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_rat.regularizers.adapters import without_adapters

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
"""What `config.problem_type` may be."""

MULTIPLE_CHOICE = "multiple_choice"
QUESTION_ANSWERING = "question_answering"
TOKENS = "token_classification"
NEXT_TOKENS = "causal_lm"

LABELS = ("labels", "shift_labels", "start_positions", "end_positions")
"""The inputs from which a model makes its task loss."""

IGNORED = -100
"""The label of a position that is not scored."""


def is_labelled(inputs: Mapping[str, Any]) -> bool:
    """Whether a batch has what a task loss needs."""
    return any(inputs.get(name) is not None for name in LABELS)


def problem_type(model: object, inputs: Mapping[str, Any], shifted: bool = False) -> str:
    """The kind of task, by the rules that transformers' heads follow.

    Args:
        model: unwrapped. `config.problem_type` decides between the kinds of sequence classification when it is set;
            otherwise `config.num_labels == 1` makes a regression, and floating point labels with more than one output
            are multi-label.
        inputs: of the model. `start_positions` mean question answering, and integer labels (batch, time) one label per
            position.
        shifted: the model shifts such labels: its output at a position predicts the label of the next one.

    Raises:
        ValueError: an unknown `config.problem_type`.
    """
    config = getattr(model, "config", None)
    given = getattr(config, "problem_type", None)
    if given is not None and given not in PROBLEM_TYPES:
        raise ValueError(f"config.problem_type is {given!r}; expected one of {', '.join(PROBLEM_TYPES)}")
    if "start_positions" in inputs:
        return QUESTION_ANSWERING
    if has_a_label_per_position(model, inputs):
        return NEXT_TOKENS if shifted else TOKENS
    if "MultipleChoice" in type(without_adapters(model)).__name__:  # such heads ignore num_labels
        return MULTIPLE_CHOICE
    if given is not None:
        return given
    if getattr(config, "num_labels", 2) == 1:
        return "regression"
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.is_floating_point():
        return "multi_label_classification"
    return "single_label_classification"


def has_a_label_per_position(model: object, inputs: Mapping[str, Any]) -> bool:
    """Whether the labels are integers of shape (batch, time)."""
    if getattr(getattr(model, "config", None), "problem_type", None) in PROBLEM_TYPES[1:]:
        return False
    labels = inputs.get("shift_labels", inputs.get("labels"))
    # A column of labels, (batch, 1), is one label per example.
    return (
        isinstance(labels, Tensor) and labels.dim() > 1 and labels.shape[1:] != (1,) and not labels.is_floating_point()
    )


def counted(problem: str, inputs: Mapping[str, Any]) -> Tensor:
    """How many labels a batch has, without those that are -100, or answers: what its task loss is a mean over.

    Returns:
        int64, a scalar.
    """
    if problem == QUESTION_ANSWERING:
        positions = inputs["start_positions"]
        return torch.tensor(positions.shape[0], device=positions.device)
    targets = _targets(problem, inputs)
    counts = targets != IGNORED
    return (counts | targets.is_floating_point()).sum()  # of a regression, -100 is a value as any other


def kept(problem: str, inputs: Mapping[str, Any], logits: Tensor) -> Tensor | None:
    """Which outputs the task loss looks at; without labels, those at tokens.

    Args:
        problem: what `problem_type` returned.
        inputs: of the model.
        logits: (batch, ..., classes).

    Returns:
        bool, of the shape of `logits` without its last axis; None where everything counts.

    Raises:
        ValueError: one label per position, but not one output for each of them.
    """
    shape = logits.shape[:-1]
    if problem in (TOKENS, NEXT_TOKENS):
        if not is_labelled(inputs):
            return _tokens(inputs, shape)
        targets = _targets(problem, inputs)
        if targets.shape != shape:
            raise ValueError(
                f"the labels have shape {tuple(targets.shape)} and the logits {tuple(logits.shape)}: a divergence "
                "needs logits of shape (batch, time, classes) for labels of shape (batch, time)"
            )
        return targets != IGNORED
    if problem == QUESTION_ANSWERING:
        if "start_positions" not in inputs:
            return None
        # Positions behind the last one mean that the answer does not begin (or end) here.
        positions = [inputs[name].reshape(-1) for name in ("start_positions", "end_positions")]
        return torch.stack(positions, dim=1) < logits.shape[-1]
    return _tokens(inputs, shape) if len(shape) > 1 else None


def mean(problem: str, values: Tensor, keep: Tensor | None) -> Tensor:
    """The mean of the values that count, as the task loss takes it; a scalar, 0 where nothing counts.

    Args:
        values: (batch,), (batch, time), or (batch, 2) for starts and ends of answers, which count half each.
        keep: bool, of the same shape, or None.
    """
    if keep is None:
        return values.mean()
    over = (0,) if problem == QUESTION_ANSWERING else tuple(range(values.dim()))
    sums = torch.where(keep, values, 0.0).sum(over)
    return (sums / keep.sum(over).clamp(min=1)).mean()


def _targets(problem: str, inputs: Mapping[str, Any]) -> Tensor:
    """(batch, time): what the output at each position is compared with."""
    if inputs.get("shift_labels") is not None:
        return inputs["shift_labels"]
    labels = inputs["labels"]
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED) if problem == NEXT_TOKENS else labels


def _tokens(inputs: Mapping[str, Any], shape: torch.Size) -> Tensor | None:
    decoder = inputs.get("decoder_attention_mask")
    mask = inputs.get("attention_mask") if inputs.get("decoder_input_ids") is None else decoder
    return mask.bool() if isinstance(mask, Tensor) and mask.shape == shape else None

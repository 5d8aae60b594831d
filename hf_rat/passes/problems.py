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
    crf                           (batch, time, classes)     the classes              labels other than -100
    ctc                           (batch, frames, symbols)   the symbols              frames that are not padding

`token_classification` is every task with one label per position that the model does not shift: masked language models
and the decoders of encoder-decoders too. It and `causal_lm` are averaged over positions. The others are averaged over
examples: the loss of a `crf` or `ctc` is one number for each sequence. Recognition.py tells which one a batch is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
"""What `config.problem_type` may be."""

MULTIPLE_CHOICE = "multiple_choice"
QUESTION_ANSWERING = "question_answering"
TOKENS = "token_classification"
NEXT_TOKENS = "causal_lm"
CRF = "crf"
CTC = "ctc"

PROBLEMS = (*PROBLEM_TYPES, MULTIPLE_CHOICE, QUESTION_ANSWERING, TOKENS, NEXT_TOKENS, CRF, CTC)
"""Every kind of task."""

BY_POSITION = (TOKENS, NEXT_TOKENS)
"""Those whose loss is a mean over labelled positions."""

LABELS = ("labels", "shift_labels", "start_positions", "end_positions")
"""The inputs from which a model makes its task loss."""

IGNORED = -100
"""The label of a position that is not scored."""


def require_problem(problem: str | None) -> None:
    """Raise a ValueError if `problem` is neither None nor a kind of task."""
    if problem is not None and problem not in PROBLEMS:
        raise ValueError(f"problem={problem!r} is no kind of task; known: {', '.join(PROBLEMS)}")


def is_labelled(inputs: Mapping[str, Any]) -> bool:
    """Whether a batch has what a task loss needs."""
    return any(inputs.get(name) is not None for name in LABELS)


def count_labels(problem: str, inputs: Mapping[str, Any]) -> Tensor:
    """How many labels a batch has, without those that are -100, or answers: what its task loss is a mean over.

    Returns:
        int64, a scalar.
    """
    if problem in (QUESTION_ANSWERING, CRF, CTC):
        labels = inputs["start_positions" if problem == QUESTION_ANSWERING else "labels"]
        return torch.tensor(labels.shape[0], device=labels.device)
    targets = _targets(problem, inputs)
    counts = targets != IGNORED
    return (counts | targets.is_floating_point()).sum()  # of a regression, -100 is a value as any other


def select_outputs(problem: str, inputs: Mapping[str, Any], logits: Tensor) -> Tensor | None:
    """Which outputs the task loss looks at; without labels, those at tokens.

    Args:
        problem: one of `PROBLEMS`.
        inputs: of the model.
        logits: (batch, ..., classes).

    Returns:
        bool, of the shape of `logits` without its last axis; None where everything counts.

    Raises:
        ValueError: one label per position, but not one output for each of them.
    """
    shape = logits.shape[:-1]
    if problem in (*BY_POSITION, CRF):
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


def losses_of_examples(problem: str, inputs: Mapping[str, Any], logits: Tensor) -> tuple[Tensor, Tensor] | None:
    """The usual task loss of each example, as if it stood alone, and how many labels that is a mean over.

    Returns:
        fp32 (batch,), and int64 (batch,); the mean of the losses weighted so is the usual task loss of the batch. None
        where it is not made of the logits alone, or the labels have another shape than the problem's.
    """
    logits = logits.detach().float()
    size = logits.shape[0]
    ones = torch.ones(size, dtype=torch.int64, device=logits.device)
    if problem in BY_POSITION:
        targets = _targets(problem, inputs)
        if targets.shape != logits.shape[:-1]:
            return None
        losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none")
        counts = (targets != IGNORED).sum(-1)
        return losses.view(targets.shape).sum(-1) / counts.clamp(min=1), counts
    if problem == QUESTION_ANSWERING:
        kept = select_outputs(problem, inputs, logits)
        assert kept is not None
        ends = torch.stack([inputs[name].reshape(-1) for name in ("start_positions", "end_positions")], dim=1)
        losses = F.cross_entropy(logits.flatten(0, 1), ends.where(kept, IGNORED).flatten(), reduction="none")
        return losses.view(size, 2).mean(1), ones
    labels = inputs.get("labels")
    if problem in (CRF, CTC) or not isinstance(labels, Tensor):
        return None
    if problem in (PROBLEM_TYPES[0], MULTIPLE_CHOICE):
        if labels.shape == logits.shape and labels.is_floating_point():
            return F.cross_entropy(logits, labels.float(), reduction="none"), ones
        if labels.numel() != size or logits.dim() != 2:
            return None
        labels = labels.reshape(-1).long()
        return F.cross_entropy(logits, labels, reduction="none"), (labels != IGNORED).long()
    if labels.numel() != logits.numel():
        return None
    usual = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
    return usual(logits, labels.reshape(logits.shape).float(), reduction="none").reshape(size, -1).mean(1), ones


def mean(problem: str, values: Tensor, keep: Tensor | None, of: Tensor | None = None) -> Tensor:
    """The mean of the values that count, as the task loss takes it; a scalar, 0 where nothing counts.

    Args:
        values: (batch,), (batch, time), or (batch, 2) for starts and ends of answers, which count half each. The
            frames of a `ctc` are averaged in each example first.
        keep: bool, of the same shape, or None.
        of: the `keep` of a whole batch, of which this is a part: the mean is then weighted so that, on average over
            parts that are drawn at random, it is that over the whole.
    """
    if keep is None:
        return values.mean()
    over: tuple[int, ...] = {QUESTION_ANSWERING: (0,), CTC: (1,)}.get(problem, tuple(range(values.dim())))
    sums = torch.where(keep, values, 0.0).sum(over)
    if of is None or problem == CTC:
        return (sums / keep.sum(over).clamp(min=1)).mean()
    return (sums / (of.sum(over).clamp(min=1) * (len(keep) / len(of)))).mean()


def _targets(problem: str, inputs: Mapping[str, Any]) -> Tensor:
    """(batch, time): what the output at each position is compared with."""
    if inputs.get("shift_labels") is not None:
        return inputs["shift_labels"]
    labels = inputs["labels"]
    if problem == NEXT_TOKENS and labels.shape[1] > 0:  # texts that are all empty have none to shift
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return labels


def _tokens(inputs: Mapping[str, Any], shape: torch.Size) -> Tensor | None:
    decoder = inputs.get("decoder_attention_mask")
    mask = inputs.get("attention_mask") if inputs.get("decoder_input_ids") is None else decoder
    return mask.bool() if isinstance(mask, Tensor) and mask.shape == shape else None

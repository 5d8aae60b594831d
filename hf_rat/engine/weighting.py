"""How much a micro-batch counts in an optimizer step, and the kind of task that this depends on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from hf_rat.engine.engine import Engine
from hf_rat.passes.adapters import without_adapters
from hf_rat.passes.dropout import without_trace
from hf_rat.passes.execution import Pass
from hf_rat.passes.problems import (
    BY_POSITION,
    CTC,
    IGNORED,
    count_labels,
    is_labelled,
    require_problem,
    select_outputs,
)
from hf_rat.passes.recognition import MULTI, REGRESSION, WAY_OUT, Recognized, judge, recognize
from hf_rat.regularizers.terms import Losses, Term, compares_logits, is_plain

HEADS = ("transformers", "hf_rat")
"""Packages whose models follow the rules of `recognize` with their own loss."""


class Weighting:
    """Gives the losses of a micro-batch, which are means over what it has, their share of an optimizer step.

    Args:
        engine: averages gradients over processes and micro-batches.
        run: (model, inputs) -> (task loss, a mean or of a `ctc` a sum; logits).
        regularizer: where it compares logits, the kind of task matters beyond the weights. What cannot be told from
            the model's class is then asked of it, once, in passes without gradients. Of `plain` nothing is ever asked.
        problem: the kind of task, if it is given: one of `problems.PROBLEMS`.
    """

    def __init__(
        self,
        engine: Engine,
        run: Callable[[nn.Module, dict[str, Any]], Pass],
        regularizer: Term,
        problem: str | None = None,
    ) -> None:
        require_problem(problem)
        self._engine, self._run = engine, run
        self._plain, self._compares = is_plain(regularizer), compares_logits(regularizer)
        self._given = None if problem is None else Recognized(problem, "as given", True)
        self._base: Any = without_adapters(engine.unwrapped)
        self._is_head = type(self._base).__module__.split(".")[0] in HEADS
        self._shifts: bool | None = None
        self._asking = False  # the task loss may ask for the kind of task
        self._judged: dict[str, Recognized] = {}
        self.taken: Recognized | None = self._given
        """The kind of task of the last batch with labels, and how it was found."""

    def run(self, model: nn.Module, inputs: dict[str, Any], tells: bool = True) -> Pass:
        """One pass: (mean task loss, logits).

        Args:
            model: as the loop calls it, or inside of what wraps it.
            inputs: of the model.
            tells: whether the kind of task is learned from it.
        """
        loss, logits = self._run(model, inputs)
        if tells:
            self.see(inputs, loss, logits)
        return self.mean(loss, inputs), logits

    def problem(self, inputs: Mapping[str, Any], ask: bool = True) -> str:
        """The kind of task of a batch: see regularizers/problems.py.

        Args:
            inputs: of the model.
            ask: run the model if `must_ask`; otherwise take what is most plausible.

        Raises:
            ValueError: two kinds are plausible, or the model cannot be asked.
        """
        if ask and self.must_ask(inputs):
            self._ask(inputs)
        found = self._recognized(inputs)
        if is_labelled(inputs):
            self.taken = found
        return found.problem

    def must_ask(self, inputs: Mapping[str, Any]) -> bool:
        """Whether `problem` is going to run the model."""
        labels = inputs.get("labels")
        if self._given is not None or self._plain or self._asking or not isinstance(labels, Tensor):
            return False
        if 0 in labels.shape:
            return False  # texts that are all empty have no first position; the next batch will be asked
        return self.by_position(inputs) and self._shifts is None and (self._compares or not self._is_head)

    def is_certain(self, inputs: Mapping[str, Any]) -> bool:
        """Whether no pass can tell another kind of task of a batch than `problem` does before it."""
        if self._given is not None or not self._compares:
            return True
        rule = self._rule(inputs)
        return self._is_certain(rule) or rule.problem in self._judged

    def by_position(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the task loss is a mean over labelled positions, rather than over examples."""
        return is_labelled(inputs) and self._recognized(inputs).problem in BY_POSITION

    def count_labels(self, inputs: Mapping[str, Any], ask: bool = True) -> Tensor:
        """How many labels a micro-batch has: what its losses are means over; an integer scalar."""
        return count_labels(self.problem(inputs, ask), inputs)

    def frames(self, inputs: Mapping[str, Any], logits: Tensor) -> Tensor | None:
        """(batch, frames) bool, the outputs of a `ctc` that are not padding; None if nothing tells."""
        mask = inputs.get("attention_mask")
        shorten = getattr(self._base, "_get_feature_vector_attention_mask", None)
        if isinstance(mask, Tensor) and mask.shape != logits.shape[:2] and shorten is not None:
            frames: Tensor = shorten(logits.shape[1], mask)
            return frames.bool()
        return select_outputs(CTC, inputs, logits)

    @overload
    def mean(self, loss: Tensor, inputs: Mapping[str, Any]) -> Tensor: ...

    @overload
    def mean(self, loss: None, inputs: Mapping[str, Any]) -> None: ...

    def mean(self, loss: Tensor | None, inputs: Mapping[str, Any]) -> Tensor | None:
        """The task loss as a mean, also where the model makes a sum over the examples."""
        return loss if loss is None or not self._is_sum(inputs) else loss / len(inputs["labels"])

    def find_num_labels(self, samples: Sequence[Mapping[str, Any]], across: bool) -> Tensor | None:
        """What `weight` divides by: the labelled positions of all micro-batches of a step.

        Args:
            samples: the micro-batches of this process.
            across: count those of the other processes too; otherwise each process counts alike.

        Returns:
            None where labels are not by position: micro-batches count alike. 1 (or the number of processes) where the
            task loss is a sum over examples: so is the step.
        """
        if any(map(self._is_sum, samples)):
            return torch.tensor(1 if across else self._engine.processes, device=samples[0]["labels"].device)
        if not any(map(self.by_position, samples)):  # one of them may hold targets of a single token only
            return None
        num_labels = torch.stack([self.count_labels(sample, ask=False) for sample in samples]).sum()
        return self._engine.sum(num_labels) if across else num_labels * self._engine.processes

    def weight(
        self, inputs: Mapping[str, Any], num_labels: Tensor | int | None, accumulation: int = 1
    ) -> Tensor | None:
        """The factor with which a mean of weighted means is the mean over all `num_labels`; None: means count alike.

        Args:
            num_labels: `count_labels` of all micro-batches of the step on all processes, in sum.
            accumulation: micro-batches that are averaged.
        """
        if num_labels is None:
            return self.count_labels(inputs) if self._is_sum(inputs) else None
        own = self.count_labels(inputs)
        means = accumulation * self._engine.accumulation * self._engine.processes
        return own * means / torch.as_tensor(num_labels, device=own.device).clamp(min=1)

    # -- the kind of task --------------------------------------------------------------------------------------------

    def _recognized(self, inputs: Mapping[str, Any]) -> Recognized:
        if self._given is not None:
            return self._given
        rule = self._rule(inputs)
        return self._judged.get(rule.problem, rule)

    def _rule(self, inputs: Mapping[str, Any]) -> Recognized:
        return recognize(self._engine.unwrapped, inputs, self._shifted)

    @property
    def _shifted(self) -> bool:
        return self._loss_shifts_by_its_code if self._shifts is None else self._shifts

    def _is_certain(self, rule: Recognized) -> bool:
        """Whether the rule holds, also under a loss of the user's."""
        return rule.sure or (self._is_head and rule.problem not in (MULTI, REGRESSION))

    @property
    def _loss_shifts_by_its_code(self) -> bool:
        """Whether the model hands its labels to transformers' loss of causal models, which shifts them.

        Nothing else in transformers does: the `ForCausalLM` of BART and others and XLNet's have a loss of their own.
        """
        config = getattr(self._base, "config", None)
        names = getattr(getattr(inspect.unwrap(type(self._base).forward), "__code__", None), "co_names", ())
        return (
            "loss_function" in names
            and getattr(self._base, "loss_function", None) is ForCausalLMLoss
            and not getattr(config, "is_encoder_decoder", False)
        )

    def _is_sum(self, inputs: Mapping[str, Any]) -> bool:
        config = getattr(self._base, "config", None)
        return (
            getattr(config, "ctc_loss_reduction", None) == "sum"
            and is_labelled(inputs)
            and self._recognized(inputs).problem == CTC
        )

    def see(self, inputs: Mapping[str, Any], loss: Tensor | None, logits: Tensor) -> None:
        """Learn the kind of task from a pass, where the rules may not hold.

        Raises:
            ValueError: two kinds are plausible, or it is another one than before.
        """
        if self._given is not None or not self._compares or not isinstance(inputs.get("labels"), Tensor):
            return
        rule = self._rule(inputs)
        if self._is_certain(rule) or rule.problem in self._judged:
            return
        found = judge(rule, inputs["labels"], loss, logits.detach())
        if {found.problem, *(other.problem for other in self._judged.values())} >= {MULTI, REGRESSION}:
            raise ValueError(f"the kind of task was {MULTI} or {REGRESSION}, and now is the other one; {WAY_OUT}")
        if rule.problem not in BY_POSITION or found.problem not in BY_POSITION:
            self._judged[rule.problem] = found

    def _ask(self, inputs: Mapping[str, Any]) -> None:
        """Look at passes without gradients. All processes do this together."""
        try:
            loss, logits = self._look(inputs)
            self.see(inputs, loss, logits)
            if self.by_position(inputs):
                self._ask_whether_labels_are_shifted(inputs, loss)
        except ValueError:
            if self._compares:
                raise
            self._shifts = self._shifted  # only the weights of micro-batches depend on it

    def _ask_whether_labels_are_shifted(self, inputs: Mapping[str, Any], loss: Tensor | None) -> None:
        """Learn whether the task loss depends on the labels of the first position.

        Nothing predicts them in a model that shifts. They are changed to labels that the batch has elsewhere, since a
        loss need not know any other. Where a batch has no two labels, the next one may tell.
        """
        labels = inputs["labels"]
        changed, can_tell = _with_other_first_labels(labels)
        other, _ = self._look({**inputs, "labels": changed})
        if loss is None or other is None:
            raise ValueError(f"{type(self._base).__name__} returns no loss in evaluation: {WAY_OUT}")
        # A mean over no position is NaN.
        tells = can_tell and bool(torch.isfinite(other))
        votes = torch.tensor([tells, tells and not torch.equal(loss, other)], device=labels.device).float()
        able, seen = self._engine.sum(votes).tolist()
        if able > 0:
            self._shifts = seen == 0

    def _look(self, inputs: Mapping[str, Any]) -> tuple[Tensor | None, Tensor]:
        self._asking = True
        try:
            with without_trace(self._engine.model, inputs["labels"].device):
                loss, logits = self.run(self._engine.model, dict(inputs))
        except Exception as error:
            raise ValueError(
                f"the kind of task of {type(self._base).__name__} cannot be told, as a pass in evaluation fails "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); {WAY_OUT}"
            ) from error
        finally:
            self._asking = False
        return loss, logits


def weigh(losses: Losses, weight: Tensor | None) -> Losses:
    """The losses, multiplied by the weight."""
    if weight is None:
        return losses
    # A micro-batch in which nothing counts has no mean: its task loss may be NaN.
    return {name: torch.where(weight > 0, weight * value, 0.0) for name, value in losses.items()}


def _with_other_first_labels(labels: Tensor) -> tuple[Tensor, bool]:
    """Labels whose first position has other ones of those in the batch; whether there are two that differ."""
    used = labels[labels != IGNORED].unique()
    changed = labels.clone()
    if len(used) > 0:
        changed[:, 0] = torch.where(labels[:, 0] == used[0], used[-1], used[0])
    return changed, not torch.equal(changed, labels)

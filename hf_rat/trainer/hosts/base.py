"""The Trainer of transformers as the host of a regularizer, and those that return their outputs as it does."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from hf_rat.engine.reading import read
from hf_rat.passes.execution import Pass
from hf_rat.passes.outputs import loss_of
from hf_rat.passes.problems import LABELS
from hf_rat.regularizers.terms import Term, compares_logits, is_plain


class Host:
    """Makes one pass with the loss of a trainer.

    Args:
        trainer: with the mixin in front.

    Attributes:
        running: whether a pass is being made.
        is_timed: whether its steps can be timed on batches of the training set (`hf_rat.trainer.speed`).
    """

    is_timed = True

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.running = False
        self._returns_outputs = False

    @classmethod
    def fits(cls, trainer: object) -> bool:
        """Whether this is the way of a trainer."""
        return True

    def require(self, regularizer: Term) -> None:
        """Refuse what the regularizer would be wrong under.

        Raises:
            ValueError: the message says why.
        """
        if not is_plain(regularizer) and is_a(self.trainer, "trl.trainer.base_trainer", "_BaseTrainer"):
            raise ValueError(
                f"{regularizer!r} with {type(self.trainer).__name__}: of TRL's trainers only SFTTrainer can be "
                "regularized"
            )

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """A new micro-batch."""

    def has_task(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a batch has what the task loss needs."""
        if any(inputs.get(name) is not None for name in (*LABELS, *(self.trainer.label_names or ()))):
            return True
        # A loss in a method may need no labels; but then it cannot be told from a batch that has none on purpose.
        return self.trainer._overrides_loss and self.trainer._unlabeled_dataset is None

    def run(self, model: nn.Module, inputs: dict[str, Any]) -> Pass:
        """(task loss, or None for a batch without labels; logits) of one pass."""
        trainer, loss = self.trainer, None
        if self.has_task(inputs):
            loss, outputs = self.task(trainer._task_loss, model, inputs)
        else:
            outputs = model(**inputs)
            loss = loss_of(outputs)
        return read(trainer.regularization.regularizer, outputs, loss, type(trainer.model).__name__)

    def task(
        self, compute_loss: Callable[..., Any], model: nn.Module, inputs: Mapping[str, Any], with_outputs: bool = False
    ) -> tuple[Tensor, Any]:
        """One pass.

        Args:
            compute_loss: of the trainer's class, or of the one behind the mixin.
            model: as the loop calls it.
            inputs: of a micro-batch, or of a part or several copies of one.
            with_outputs: the outputs are wanted even if the regularizer asks for none.

        Returns:
            The task loss, a mean over `inputs`; the outputs, with the graph of their logits, or None where the
            regularizer asks for none.

        Raises:
            ValueError: the regularizer compares predictions, and `compute_loss` returns none.
        """
        inputs = dict(inputs)  # the Trainer's own compute_loss takes the labels out
        self.running = True
        try:
            if self.trainer._overrides_loss:
                return self._of_a_method(compute_loss, model, inputs, with_outputs)
            loss, outputs = compute_loss(model, inputs, return_outputs=True)
            return loss, outputs
        finally:
            self.running = False

    def _of_a_method(
        self, compute_loss: Callable[..., Any], model: nn.Module, inputs: dict[str, Any], with_outputs: bool
    ) -> tuple[Tensor, Any]:
        labels, compares = (
            inputs.get("labels"),
            with_outputs or compares_logits(self.trainer.regularization.regularizer),
        )
        count = self._count_labels(inputs) if isinstance(labels, Tensor) else None
        asked = select_arguments(compute_loss, return_outputs=compares, num_items_in_batch=count)
        seen: list[Any] = []
        listening = compares and not self._returns_outputs  # where a hook would be for nothing
        handle = model.register_forward_hook(lambda *args: seen.append(args[-1])) if listening else None
        try:
            answer = compute_loss(model, inputs, **asked)
        finally:
            if handle is not None:
                handle.remove()
        if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Tensor):
            self._returns_outputs = True
            return answer
        if isinstance(answer, Tensor) and (not compares or len(seen) == 1):
            return answer, seen[0] if seen else None
        got = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
        wanted = "(loss, outputs) where return_outputs is True" if compares else "the loss"
        raise ValueError(
            f"compute_loss of {type(self.trainer).__name__} returned {got} after {len(seen)} calls of the model, and "
            f"{self.trainer.regularizer!r} needs {wanted}; let it return that"
            if listening
            else f"compute_loss of {type(self.trainer).__name__} returned {got}; let it return {wanted}"
        )

    def by_function(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """The task loss by the trainer's `compute_loss_func`, with the label count of this pass."""
        count = self._count_labels(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = self.trainer.compute_loss_func(outputs, labels, num_items_in_batch=count)
        return (loss, outputs) if return_outputs else loss

    def _count_labels(self, inputs: Mapping[str, Any]) -> Tensor:
        counted: Tensor = self.trainer.regularization.count_labels(inputs)
        return counted.clamp(min=1)


def select_arguments(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Those of the keyword arguments that `function` takes."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def is_a(trainer: object, module: str, name: str) -> bool:
    """Whether a trainer is of a class of a package that need not be installed."""
    return module in sys.modules and isinstance(trainer, getattr(sys.modules[module], name))

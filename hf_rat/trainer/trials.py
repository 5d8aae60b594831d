"""A hyperparameter search over the fields of the regularizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainingArguments

from hf_rat.regularizers.terms import Term
from hf_rat.trainer.training_args import WHEN, is_reg, reg_fields


def check_space(
    space: Callable[[Any], dict[str, Any]], args: TrainingArguments, given: Term | None
) -> Callable[[Any], dict[str, Any]]:
    """The same space, in which every trial begins with the fields that the search began with.

    Args:
        space: trial -> name of a field -> its value in that trial (or what the search backend makes values from).
        args: of the Trainer. A trial need not set every field that another one sets: alpha of rdrop, epsilon of fgm.
        given: the regularizer that the Trainer was given, which no field changes.

    Raises:
        ValueError: (when it is called) no field of that name makes the regularizer.
    """
    first = reg_fields(args)

    def checked(trial: Any) -> dict[str, Any]:
        for name, value in first.items():
            setattr(args, name, value)
        tried = space(trial)
        for name in filter(is_reg, tried.get("parameters", tried)):  # wandb's are one level down
            if given is not None:
                raise ValueError(
                    f"the search varies {name}, which does not change regularizer={given!r}; describe the regularizer "
                    "by RegularizedTrainingArguments(reg=...) instead of regularizer="
                )
            if name in WHEN:  # the Trainer makes a value what the one before was, and 0.3 of an int is step 0
                setattr(args, name, None)
            if not hasattr(args, name):
                raise ValueError(
                    f"the search varies {name}, which {type(args).__name__} does not have; use a field of "
                    "RegularizedTrainingArguments"
                )
        return tried

    return checked

"""Dropout rates that change over a training run: curriculum dropout and its two controls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

KINDS = ("curriculum", "annealed", "switch")

# Dropouts of the recurrent layers that scale in evaluation by their rate, as published.
_SCALED_AT_TEST = ("recurrent", "rnndrop", "zoneout", "zoneout_cell")


class _Rate(NamedTuple):
    """One rate of a model: where it is, and what it is without a schedule."""

    owner: Any
    name: str
    target: float

    def set(self, share: float) -> None:
        setattr(self.owner, self.name, self.target * share)


class DropoutSchedule(TrainerCallback):
    """Scale every dropout rate of the model in each optimizer step: p(t) = share(t) * p, t = 0 in the first.

    "curriculum": share = 1 - exp(-gamma t), from no dropout to all of it (Morerio et al. 2017). "annealed":
    exp(-gamma t), their control. "switch": 0 until gamma t reaches 1, then 1.

    Each rate has its own p and all share gamma; a rate of 0 stays 0. Reached are the `p` of dropout modules, every
    attribute of a module, or of its config, that is named like a dropout and holds a rate (attention functions read
    these at each call), and the `dropouts` of recurrent layers. The rates are set when a step begins and are the
    model's own again when it ends: evaluation, checkpoints and a resumed run need no care, and t is the Trainer's
    `global_step`. Setting rates, rather than rewriting the calls of dropout, keeps activation checkpointing exact,
    which calls again in backward, on a GPU in another thread.

    A model under `torch.compile` is compiled anew for each new rate: use "switch", or do not compile. A pass that has
    a rate of its own (`dropouts` of R-AT) keeps it and only follows the schedule where that is zero. The recurrent
    layers' "recurrent", "rnndrop" and zoneout scale in evaluation by their full rate, also early in the run.

    Args:
        kind: "curriculum", "annealed" or "switch".
        gamma: per optimizer step. Default: 10 / (steps of the run), the paper's heuristic: 63 % of the way after a
            tenth of the run.

    Raises:
        ValueError: an unknown kind, a gamma that is not above 0; when training begins: a model without dropout, or
            "annealed" on a dropout that scales in evaluation, since it would end at 0 and be tested at its full rate.
    """

    def __init__(self, kind: str = "curriculum", gamma: float | None = None) -> None:
        if kind not in KINDS:
            raise ValueError(f"dropout_schedule={kind!r} is none of {', '.join(KINDS)}")
        if gamma is not None and not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"dropout_gamma={gamma!r} must be a number above 0")
        self.kind, self.gamma = kind, gamma
        self._rates: list[_Rate] = []

    def share(self, step: int, steps: int) -> float:
        """p(t) / p in a step.

        Args:
            step: optimizer steps done, 0 or more.
            steps: optimizer steps of the whole run, which gives the default gamma.
        """
        way = step * (10.0 / steps if self.gamma is None else self.gamma)
        if self.kind == "switch":
            return float(way >= 1.0)
        return -math.expm1(-way) if self.kind == "curriculum" else math.exp(-way)

    def restore(self) -> None:
        """Give every rate its own value back: `RegularizedTrainer` does if an error or Ctrl-C ends a step."""
        for rate in self._rates:
            rate.set(1.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()
        model: nn.Module = kwargs["model"]
        self._rates = list(_rates(model))
        if not self._rates:
            raise ValueError(f"dropout_schedule={self.kind!r}: {type(model).__name__} has no dropout rate above 0")
        wrong = sorted({rate.name for rate in self._rates if rate.name in _SCALED_AT_TEST})
        if self.kind == "annealed" and wrong:
            raise ValueError(
                f"dropout_schedule='annealed' ends at rate 0, but {', '.join(wrong)} scales in evaluation by its full "
                "rate; use 'curriculum' or 'switch'"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        share = self.share(state.global_step, state.max_steps)
        for rate in self._rates:
            rate.set(share)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()
        self._rates = []


def _rates(model: nn.Module) -> Iterator[_Rate]:
    """Every rate in (0, 1) of a model, each once."""
    seen: set[int] = set()
    for module in model.modules():
        owners: list[Any] = [module]
        owners += [value for value in vars(module).values() if isinstance(value, PreTrainedConfig)]
        owners += [vars(module)["dropouts"]] if dataclasses.is_dataclass(vars(module).get("dropouts")) else []
        for owner in owners:
            if id(owner) in seen:
                continue
            seen.add(id(owner))
            for name, value in list(vars(owner).items()):
                if _holds_rate(owner, name, value) and 0.0 < value < 1.0:
                    yield _Rate(owner, name, value)


def is_dropout_rate(name: str, value: Any) -> bool:
    """Whether an attribute of a module or a configuration is a dropout rate, by its name and what it holds.

    The rate at which whole layers are dropped ("layerdrop") is none, nor is a rate of None, which follows another one.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and ("dropout" in name or name.endswith("pdrop"))


def _holds_rate(owner: Any, name: str, value: Any) -> bool:
    if not isinstance(owner, nn.Module | PreTrainedConfig):
        return isinstance(value, float)  # a recurrent layer's `dropouts` hold nothing but rates
    is_layer = isinstance(owner, nn.Module) and "dropout" in type(owner).__name__.lower()
    return is_dropout_rate(name, value) or (is_layer and name in ("p", "drop_prob") and isinstance(value, float))

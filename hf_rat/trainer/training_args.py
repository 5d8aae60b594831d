"""The regularizer's flat fields beside the Trainer's arguments, one flag and one swept value each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments

from hf_rat.engine.bucketing_policy import SPLITTING
from hf_rat.engine.requirements import MEMORY
from hf_rat.passes.problems import PROBLEMS, require_problem
from hf_rat.regularizers.expressions import parse
from hf_rat.regularizers.terms import Term
from hf_rat.trainer.average import read_average
from hf_rat.trainer.kept_memory import can_keep_memory

_IN_EXPRESSION = "Overrides this argument of every recipe in --reg that has it; not set: the recipe's own value."

_WHEN = "a whole number or a share of all steps (0.3)"

WHEN = ("reg_begin", "reg_warmup", "reg_end")
"""The fields that are a place in the run: a step, or a share of all steps."""

_HOW = ("reg_single_backward", "reg_memory", "reg_problem")
"""The fields that say how a regularizer runs, not what it is."""


# No postponed annotations in this module: HfArgumentParser reads the types of the fields.
@dataclass
class RegularizedTrainingArguments(TrainingArguments):
    """`TrainingArguments` with `reg`, the regularizer, and `reg_*`, its arguments.

    The `reg_*` fields default to None, which leaves each recipe its default. One that is set overrides every recipe in
    `reg` that has the argument, so `Trainer.hyperparameter_search` can sweep it; one that `reg` sets already, or that
    nothing uses, is an error.
    """

    reg: str = field(
        default="plain",
        metadata={"help": 'The regularizer, for instance rat, "rat(epsilon=0.1, alpha=0.8)" or "rdrop + 0.5 * vat".'},
    )
    reg_epsilon: float | None = field(default=None, metadata={"help": f"Size of the perturbation. {_IN_EXPRESSION}"})
    reg_alpha: float | None = field(
        default=None, metadata={"help": f"Weight of the regularizing part. {_IN_EXPRESSION}"}
    )
    reg_step: float | None = field(default=None, metadata={"help": f"Length of an ascent step. {_IN_EXPRESSION}"})
    reg_steps: int | None = field(default=None, metadata={"help": f"Number of ascent steps. {_IN_EXPRESSION}"})
    reg_start: float | None = field(default=None, metadata={"help": f"Size of the random start. {_IN_EXPRESSION}"})
    reg_target: float | None = field(
        default=None,
        metadata={"help": f"Mean relative rise of the task loss, for which epsilon is found. {_IN_EXPRESSION}"},
    )
    # A text on the command line, which tells 1, a step, from 1.0, no share.
    reg_begin: float | str | None = field(
        default=None, metadata={"help": f"First training step that is regularized, {_WHEN}. {_IN_EXPRESSION}"}
    )
    reg_warmup: float | str | None = field(
        default=None,
        metadata={"help": f"Steps over which the regularizing part grows to its weight, {_WHEN}. {_IN_EXPRESSION}"},
    )
    reg_end: float | str | None = field(
        default=None, metadata={"help": f"First training step that is plain again, {_WHEN}. {_IN_EXPRESSION}"}
    )
    reg_every: int | None = field(
        default=None, metadata={"help": f"Regularize one of so many training steps. {_IN_EXPRESSION}"}
    )
    reg_below: float | None = field(
        default=None,
        metadata={"help": f"Wait until the task loss is below this share of what it was at first. {_IN_EXPRESSION}"},
    )
    reg_examples: float | None = field(
        default=None,
        metadata={"help": f"Share of the examples that all passes but the clean one run over. {_IN_EXPRESSION}"},
    )
    reg_which: str | None = field(
        default=None, metadata={"help": f"With --reg_examples, which examples: random or hardest. {_IN_EXPRESSION}"}
    )
    reg_rate: float | None = field(default=None, metadata={"help": f"Fraction of units flipped. {_IN_EXPRESSION}"})
    reg_passes: int | None = field(default=None, metadata={"help": f"Number of dropout passes. {_IN_EXPRESSION}"})
    reg_scope: str | None = field(
        default=None, metadata={"help": f"What the norm is taken over: example or table. {_IN_EXPRESSION}"}
    )
    reg_unit: str | None = field(
        default=None,
        metadata={"help": f"What epsilon is measured in: absolute, embedding or relative. {_IN_EXPRESSION}"},
    )
    reg_divergence: str | None = field(
        default=None, metadata={"help": f"How predictions are compared: bi_kl, kl, js, mse, ... {_IN_EXPRESSION}"}
    )
    reg_start_mask: str | None = field(
        default=None, metadata={"help": f"Adversarial dropout: one_drop, base or random. {_IN_EXPRESSION}"}
    )
    reg_site: str | None = field(
        default=None,
        metadata={
            "help": "Where the perturbation enters: embeddings, decoder_embeddings, weights or a module; of "
            f"adversarial dropout: logits, recurrent or a linear layer. {_IN_EXPRESSION}"
        },
    )
    reg_top: float | str | None = field(
        default=None,
        metadata={
            "help": "Passes run the top of the model only, and the layers below once: the share of the layers that "
            f"are the top (1/3), or the name of its lowest layer. {_IN_EXPRESSION}"
        },
    )
    reg_base: str | None = field(
        default=None, metadata={"help": f"Adversarial dropout: ones or random. {_IN_EXPRESSION}"}
    )
    reg_over: str | None = field(
        default=None, metadata={"help": f"At the weights, slopes over microbatch or step. {_IN_EXPRESSION}"}
    )
    reg_norm: str | None = field(
        default=None, metadata={"help": f"At the weights, a norm over all of them or each tensor. {_IN_EXPRESSION}"}
    )
    reg_single_backward: bool = field(
        default=False,
        metadata={"help": "Make one backward per micro-batch (same gradients, more memory); DeepSpeed always does."},
    )

    reg_memory: str = field(
        default="fast",
        metadata={
            "help": "fast: dropout passes run as one batch; lean: one by one, with the activations of one of them in "
            "memory, and once more in the backward."
        },
    )
    reg_problem: str | None = field(
        default=None,
        metadata={"help": f"The kind of task, where it is not found rightly: {', '.join(PROBLEMS)}."},
    )
    length_buckets: str = field(
        default="auto",
        metadata={
            "help": "auto: run a regularized batch in parts of like length where that is exact and faster, so that "
            "short texts are not padded to the longest; off: run it whole."
        },
    )
    no_price: bool = field(
        default=False,
        metadata={"help": "Do not time, after training and on three batches, what a step costs beside a plain one."},
    )
    fast: bool = field(
        default=False,
        metadata={
            "help": "Faster arithmetic where the hardware has it, which rounds differently: bf16, TF32 or oneDNN for "
            "what stays in fp32, and on a CPU dropout masks of 16 random bits and freed memory that is kept for the "
            "next step. The log says what was chosen."
        },
    )

    clip_embeddings: bool = field(
        default=True,
        metadata={
            "help": "max_grad_norm clips all gradients, the default; --no_clip_embeddings: all but those of embedding "
            "tables."
        },
    )
    lr_decay: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of each optimizer step, as a factor of the one before. Needs --lr_scheduler_type "
            "constant."
        },
    )
    average: str | None = field(
        default=None,
        metadata={
            "help": "ema(0.99), a moving average of the weights, swa(0.5), their mean over the second half of the "
            "run, or nt_asgd(5), their mean since the evaluations stopped getting better: it is what is evaluated, "
            "chosen by, saved and pushed, while training goes on from the weights."
        },
    )
    layer_decay: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of each lower layer, as a factor: the last layer has learning_rate x this, the one "
            "below it that x this again, the embeddings the least; what is above the layers has learning_rate."
        },
    )
    probe_steps: int = field(
        default=0, metadata={"help": "Train the head alone for so many optimizer steps first (linear probing)."}
    )

    def __post_init__(self) -> None:
        for name in WHEN:
            setattr(self, name, _place(name, getattr(self, name)))
        if self.average is not None:
            read_average(self.average)
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must be a factor above 0 and at most 1")
        if self.lr_decay is not None:
            if not 0 < self.lr_decay <= 1:
                raise ValueError(f"lr_decay={self.lr_decay} must be a factor above 0 and at most 1")
            if self.lr_scheduler_type != SchedulerType.CONSTANT:
                found = SchedulerType(self.lr_scheduler_type).value
                raise ValueError(f"lr_decay={self.lr_decay} needs lr_scheduler_type='constant', which is {found!r}")
        if self.probe_steps < 0:
            raise ValueError(f"probe_steps={self.probe_steps} must be a number of steps, at least 0")
        for name, known in (("reg_memory", MEMORY), ("length_buckets", SPLITTING)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        require_problem(self.reg_problem)
        self.fast_choices = self._choose_fast() if self.fast else ()
        super().__post_init__()

    def _choose_fast(self) -> tuple[str, ...]:
        """What this machine has, for `faster` to switch on in training; fp16 that was asked for stays."""
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        capabilities = torch.cpu.get_capabilities()
        has_bf16 = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if on_gpu
            else bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        )
        choices = []
        if self.fp16:
            choices.append("fp16, as asked for")
        elif has_bf16 or self.bf16:
            self.bf16 = True
            # The Trainer takes bf16 on a CPU only where the CPU was asked for.
            self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
            choices.append("bf16")
        if on_gpu:
            choices.append("TF32 where the GPU has it")
        else:
            choices += ["products in fp32 by oneDNN (in bf16 on AMX)", "dropout masks of 16 random bits"]
            choices += ["attention with dropout in bf16"] if self.bf16 else []
            choices += ["freed memory kept for the next step"] if can_keep_memory() else []
        return tuple(choices)

    def regularizer(self) -> Term:
        """The regularizer that `reg` and the `reg_*` fields describe; a ValueError names the field that is wrong."""
        return parse(self.reg, self.reg_overrides(), argument="reg")

    def reg_overrides(self) -> dict[str, Any]:
        """argument -> value, of the `reg_*` fields that are set."""
        names = [f.name for f in fields(self) if f.name.startswith("reg_") and f.name not in _HOW]
        return {name.removeprefix("reg_"): getattr(self, name) for name in names if getattr(self, name) is not None}


def _place(name: str, given: Any) -> Any:
    """A step, an int, or a share, a float, that may have come as text."""
    if not isinstance(given, str):
        return given
    try:
        return int(given)
    except ValueError:
        pass
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"{name}={given!r} must be {_WHEN}") from None


def reg_fields(args: TrainingArguments) -> dict[str, Any]:
    """name -> value of `reg` and the `reg_*` fields; nothing of a bare TrainingArguments."""
    if not isinstance(args, RegularizedTrainingArguments):
        return {}
    return {f.name: getattr(args, f.name) for f in fields(args) if is_reg(f.name)}


def require_one_description(regularizer: Term, args: TrainingArguments) -> None:
    """Refuse arguments that describe a regularizer beside the one that was given.

    Raises:
        ValueError: with the fields that are set.
    """
    if isinstance(args, RegularizedTrainingArguments):
        found = {"reg": args.reg, **{f"reg_{name}": value for name, value in args.reg_overrides().items()}}
        if found != {"reg": "plain"}:
            raise ValueError(f"both regularizer={regularizer!r} and args say what to do ({found}); keep one of them")


def refuse_fields(trainer: str, keywords: Mapping[str, Any]) -> None:
    """Refuse the fields of the arguments among the keywords of a Trainer.

    Raises:
        TypeError: with the first one.
    """
    for name, value in keywords.items():
        if is_reg(name):
            instead = f"regularizer={value!r}" if name == "reg" else 'regularizer="rat(...)"'
            raise TypeError(
                f"{trainer} has no argument {name}={value!r}; write {instead}, or give it "
                f"args=RegularizedTrainingArguments({name}={value!r}, ...)"
            )


def is_reg(name: str) -> bool:
    """Whether a field says something of the regularizer."""
    return name == "reg" or name.startswith("reg_")

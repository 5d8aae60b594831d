"""The flags of the scripts: three dataclasses, read from the command line or from a JSON or YAML file."""

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from hf_rat.finetuning.blame import blamed, not_a_flag, raised_here
from hf_rat.finetuning.file_flags import FileArguments
from hf_rat.trainer.training_args import RegularizedTrainingArguments

T = TypeVar("T")
PRESETS = ("paper",)
DATA_DIR_VARIABLE = "HF_RAT_DATA"


# No postponed annotations in this module: HfArgumentParser reads the types of the fields.
@dataclass
class ModelArguments:
    """Which model, configuration and tokenizer are fine-tuned."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "On the Hub, or a folder. Without it and without data: a small one."},
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Configuration, if it is not the model's: a name on the Hub or a folder."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer, if it is not the model's: a name on the Hub or a folder."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    token: str | None = field(default=None, metadata={"help": "For the Hub; without it, that of `hf auth login`."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run the Python code that comes with a model. Off unless asked for."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Make a new head when the model's has another number of labels."}
    )
    dropout: float | None = field(
        default=None,
        metadata={"help": "Every dropout rate of the model. Without it: the configuration's own."},
    )
    lora_r: int | None = field(default=None, metadata={"help": "Train a LoRA adapter of this rank only."})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA's scale, with --lora_r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the LoRA matrices, with --lora_r."})
    lora_target_modules: str | None = field(
        default=None,
        metadata={"help": "Modules that get an adapter, comma separated, or all-linear. Without it: PEFT's choice."},
    )

    reinit_layers: int | None = field(
        default=None,
        metadata={"help": "Initialise the last N layers, and the pooler above them, anew before training."},
    )

    def __post_init__(self) -> None:
        if self.reinit_layers is not None and self.lora_r is not None:
            raise ValueError(
                f"--reinit_layers {self.reinit_layers}: --lora_r does not train the layers; leave one out"
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout {self.dropout}: a rate of at least 0 and below 1 is needed")
        if self.lora_r is not None and self.lora_r < 1:
            raise ValueError(f"--lora_r {self.lora_r}: a rank of at least 1 is needed")
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            if self.lora_r is None and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"--{name} {getattr(self, name)!r} needs --lora_r: without a rank there is no adapter"
                )


@dataclass
class DataTrainingArguments(FileArguments):
    """Which data are read, and how they are made ready."""

    task_name: str | None = field(
        default=None, metadata={"help": "cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A data set of run_textcls.py, any on the Hub, or a folder."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Read DIR/glue/<task>/<split>.parquet (texts: DIR/<data set>/...) instead of the Hub's copy. "
            f"The environment variable {DATA_DIR_VARIABLE} says the same."
        },
    )
    max_seq_length: int = field(default=128, metadata={"help": "Tokens per example at most; longer texts are cut."})
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize anew, reuse nothing."})
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad to --max_seq_length instead of to the longest text of each batch."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first N training examples."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first N validation examples."})
    validation_from_train: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate on this share of the training examples (always the same), which are not trained on, "
            "instead of the validation split: for choosing hyperparameters without looking at it."
        },
    )
    train_size: int | None = field(
        default=None,
        metadata={"help": "Train on N examples only, drawn by a fixed seed: for studies of small data."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the training split as it is needed and keep nothing of it. Needs --max_steps."},
    )
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use the first N test examples."})
    mc_samples: int | None = field(
        default=None,
        metadata={
            "help": "With --do_predict: average N passes with dropout on. Their spread is a further column of the "
            "predictions."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={"help": "paper: R-AT as in Table 7 of its paper.", "choices": PRESETS},
    )
    submission_dir: str | None = field(
        default=None, metadata={"help": "With --do_predict: write the leaderboard's file(s) here."}
    )
    alone: bool = field(
        default=False,
        metadata={"help": "Train what --reg says only: without data, plain models are trained beside it otherwise."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data_dir = self.data_dir or os.environ.get(DATA_DIR_VARIABLE) or None
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"--preset {self.preset!r} is not known; there is {', '.join(PRESETS)}")
        for name in (
            *("max_seq_length", "train_size", "unlabeled_size"),
            *("max_train_samples", "max_eval_samples", "max_predict_samples"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: at least 1 is needed")
        if self.mc_samples is not None and self.mc_samples < 2:
            raise ValueError(f"--mc_samples {self.mc_samples}: at least 2 are needed, for one pass has no spread")
        for name in ("train_size", "max_train_samples", "validation_from_train"):
            if self.streaming and getattr(self, name) is not None:
                raise ValueError(f"--{name} {getattr(self, name)}: a stream (--streaming) has no known size")
        share = self.validation_from_train
        if share is not None and not 0 < share < 1:
            raise ValueError(f"--validation_from_train {share}: a share between 0 and 1 is needed")

    @property
    def source_flag(self) -> str:
        """The flag that names the data set."""
        return "--dataset_name" if self.task_name is None else "--task_name"


@dataclass
class Flags:
    """What was asked for, and what of it was said aloud.

    Args:
        model: which model.
        data: which data.
        training: the Trainer's and the regularizer's.
        given: names of the flags that the command line or the file set, whatever their value.
    """

    model: ModelArguments
    data: DataTrainingArguments
    training: RegularizedTrainingArguments
    given: frozenset[str]


class _Parser(HfArgumentParser):
    """Knows no defaults, so that its namespace tells what was said from what was not.

    It raises instead of printing the usage of two hundred flags.
    """

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        return super().add_argument(*names, **{**options, "default": argparse.SUPPRESS})

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


DATACLASSES: tuple[Any, ...] = (ModelArguments, DataTrainingArguments, RegularizedTrainingArguments)


def given_flags(
    argv: Sequence[str], program: str, more: tuple[Any, ...] = (), base: tuple[Any, ...] = DATACLASSES
) -> dict[str, Any]:
    """The flags that are set, name -> value, without any default.

    Args:
        argv: the command line without the program. If it begins with a .json, .yaml or .yml file, that file is read
            first, and the flags after it win.
        program: name of the command, for its help.
        more: dataclasses of the command's own flags.
        base: those that it shares with others.

    Raises:
        ValueError: a flag is not known or its value does not parse, or the file does not.
    """
    parser = _Parser([*base, *more], prog=program)
    known = [f.name for dataclass_ in (*base, *more) for f in dataclasses.fields(dataclass_) if f.init]
    given: dict[str, Any] = {}
    argv = list(argv)
    if argv and Path(argv[0]).suffix in (".json", ".yaml", ".yml"):
        given.update(_read_flag_file(Path(argv.pop(0))))
    # A bare --resume_from_checkpoint means the newest one.
    for index, word in enumerate(argv):
        if word == "--resume_from_checkpoint" and (index + 1 == len(argv) or argv[index + 1].startswith("--")):
            argv[index] = "--resume_from_checkpoint=true"
    namespace, unknown = parser.parse_known_args(argv)
    given.update(vars(namespace))
    unknown = [name for name in given if name not in known] + unknown
    if unknown:
        raise ValueError(not_a_flag(unknown[0], known, program))
    return given


def _read_flag_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"argument file {str(path)!r} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"argument file {str(path)!r} holds a {type(content).__name__}, it must hold flag: value")
    return content


def read_flags(given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Flags:
    """Build the dataclasses that every command has.

    Args:
        given: the flags that are set, from `given_flags`.
        defaults: other defaults than the dataclasses' own, for the flags that are not set.

    Raises:
        ValueError: a value is not acceptable.
    """
    model, data, training = (build(dataclass_, given, defaults) for dataclass_ in DATACLASSES)
    return Flags(model, data, training, frozenset(given))


def build(dataclass_: type[T], given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> T:
    """One dataclass of flags, as `read_flags`."""
    values = {**(defaults or {}), **given}
    names = {f.name for f in dataclasses.fields(dataclass_) if f.init}  # type: ignore[arg-type]
    try:
        return dataclass_(**{name: value for name, value in values.items() if name in names})
    except (ValueError, TypeError, ImportError, OSError, NotImplementedError) as error:
        said = " ".join(str(error).split())
        raise ValueError(said if raised_here(error) else blamed(given, error)) from error

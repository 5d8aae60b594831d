"""Runs that are trained on a part of the training rows and scored on the rest: what may be looked at to choose."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_rat.experiments.experiment import Experiment, Setting
from hf_rat.experiments.run import Run
from hf_rat.experiments.words import value_of, without

SHARE = "0.2"  # of the training rows, where --validation_from_train does not say another
_DATA = ("task_name", "dataset_name", "train_file")


def require_training_rows(experiment: Experiment, what: str) -> None:
    """Refuse a comparison of whose training rows none can be held back.

    Args:
        experiment: all of its runs are looked at.
        what: the flag that asks for it.

    Raises:
        ValueError: one line that names the flag.
    """
    for run in experiment.plan():
        if all(given(run.command, name) is None for name in _DATA):
            raise ValueError(f"{what} holds back training rows, which the built-in example cannot: name a data set")
        if given(run.command, "submission_dir") is not None:
            raise ValueError(f"{what}: --submission_dir is of one run; leave it out, and use hf-rat submit afterwards")
        setting = for_report(Setting(run.command, ""))
        if given(setting.words, "validation_from_train") is not None and not _is_true(
            given(run.command, "do_predict")
        ):
            raise ValueError(
                f"{what}: give --validation_from_train in words, not in {run.command[1]}: it is for choosing"
            )


def on_held_back(run: Run, folder: Path) -> Run:
    """The same run, scored on training rows that it is not trained on; no test split is read.

    Args:
        run: of the comparison.
        folder: of its own.
    """
    words = list(run.command[:-2])
    own = [] if given(words, "validation_from_train") is not None else ["--validation_from_train", SHARE]
    own += ["--do_train", "true", "--do_eval", "true", "--do_predict", "false"]
    if given(words, "push_to_hub") is not None:
        own += ["--push_to_hub", "false"]
    if value_of(words, "run_name") is not None:
        own += ["--run_name", f"{value_of(words, 'run_name')} {folder.name}"]
    return dataclasses.replace(run, folder=folder, command=(*words, *own, "--output_dir", str(folder)))


def for_report(setting: Setting) -> Setting:
    """The words of the runs that report, after others have chosen on held-back rows: those hold back nothing.

    Unless they predict a test split: then what they train and evaluate on is the user's affair.
    """
    if given(setting.words, "validation_from_train") is None or _is_true(given(setting.words, "do_predict")):
        return setting
    return Setting(tuple(without(setting.words, ["validation_from_train"])), setting.expression)


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "t", "yes", "y", "1")


def given(words: Sequence[str], name: str) -> Any:
    """What a command says for a flag, in its words or in the file of flags that it begins with; None for nothing.

    Raises:
        ValueError: the file cannot be read.
    """
    found = value_of(words, name)
    if found is None and len(words) > 1 and Path(words[1]).suffix in (".json", ".yaml", ".yml"):
        try:
            flags = yaml.safe_load(Path(words[1]).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"argument file {words[1]!r} cannot be read ({' '.join(str(error).split())})") from None
        return flags.get(name) if isinstance(flags, Mapping) else None
    return found


def fresh_seeds(experiment: Experiment) -> Iterator[int]:
    """Seeds that no run of the comparison has: what chooses is not repeated in what reports."""
    return itertools.count(max(experiment.seeds) + 1)


def drop_weights(folder: Path) -> None:
    """Remove what a run has saved of its model: of what only chose, the scores are what is kept."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
        path.unlink()

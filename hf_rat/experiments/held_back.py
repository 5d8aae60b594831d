"""Runs that are trained on a part of the training rows and scored on the rest: what may be looked at to choose."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_rat.experiments.experiment import Experiment
from hf_rat.experiments.run import Run
from hf_rat.experiments.words import value_of

SHARE = "0.2"  # of the training rows, where --validation_from_train does not say another
_DATA = ("task_name", "dataset_name", "train_file")
_FOR_ONE = ("submission_dir",)


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
            raise ValueError(f"{what} holds back training rows, and the built-in example has none to spare: name a data set")
        for name in _FOR_ONE:
            if given(run.command, name) is not None:
                raise ValueError(f"{what}: --{name} is for a single run; build the files afterwards with hf-rat submit")


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

"""One frozen row per data set. A new data set is one new row here; nothing else has to know it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Validation(NamedTuple):
    """A validation split.

    Args:
        split: name of the split on the Hub, and of its parquet file.
        suffix: added to the names of its scores; empty for the first split of a task.
    """

    split: str
    suffix: str = ""


class HeldOut(NamedTuple):
    """A test split and the leaderboard file its predictions go to.

    Args:
        split: name of the split on the Hub, and of its parquet file.
        file: name of the submission file; None when no leaderboard takes this split.
        rows: number of predictions the leaderboard expects in that file.
        suffix: added to the task's name in the name of its predictions; empty for the first split of a task.
    """

    split: str
    file: str | None = None
    rows: int | None = None
    suffix: str = ""


@dataclass(frozen=True)
class Task:
    """What the scripts need to know about one data set.

    Args:
        name: what `--task_name` is given, lower case.
        text_columns: the one or two columns that are read, in the order the model sees them.
        labels: label names, at the position of the number the data set stores; empty for regression.
        metrics: names of functions in `hf_rat.data.metrics`, in the order they are reported.
        hub: name and configuration of the data set on the Hub; no configuration is None.
        folder: folder below `--data_dir` that holds one parquet file per split.
        label_column: column of the labels.
        train: training split; None when the data set has none.
        evaluation: validation splits; the first one is the one that counts for `--load_best_model_at_end`.
        test: test splits, each with its leaderboard file.
        submit_names: whether the leaderboard wants the label's name (True) or its number (False).
        bounds: lowest and highest value of a regression label, inclusive.
        also_predicts: name of a test-only task that this task's model answers too (AX for MNLI).
    """

    name: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    hub: tuple[str, str | None]
    folder: str
    label_column: str = "label"
    train: str | None = "train"
    evaluation: tuple[Validation, ...] = (Validation("validation"),)
    test: tuple[HeldOut, ...] = (HeldOut("test"),)
    submit_names: bool = False
    bounds: tuple[float, float] | None = None
    also_predicts: str | None = None

    @property
    def regression(self) -> bool:
        """Whether the label is a number to be approached rather than a class."""
        return not self.labels


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")


def _glue(name: str, **row: Any) -> Task:
    return Task(name=name, hub=("nyu-mll/glue", name), folder=f"glue/{name}", **row)


GLUE: tuple[Task, ...] = (
    _glue(
        "cola",
        text_columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        test=(HeldOut("test", "CoLA.tsv", 1063),),
    ),
    _glue(
        "sst2",
        text_columns=("sentence",),
        labels=("negative", "positive"),
        metrics=("accuracy",),
        test=(HeldOut("test", "SST-2.tsv", 1821),),
    ),
    _glue(
        "mrpc",
        text_columns=_PAIR,
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        test=(HeldOut("test", "MRPC.tsv", 1725),),
    ),
    _glue(
        "stsb",
        text_columns=_PAIR,
        labels=(),
        metrics=("pearson", "spearmanr"),
        test=(HeldOut("test", "STS-B.tsv", 1379),),
        bounds=(0.0, 5.0),
    ),
    _glue(
        "qqp",
        text_columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        test=(HeldOut("test", "QQP.tsv", 390965),),
    ),
    _glue(
        "mnli",
        text_columns=("premise", "hypothesis"),
        labels=_NLI,
        metrics=("accuracy",),
        evaluation=(Validation("validation_matched"), Validation("validation_mismatched", "mm")),
        test=(HeldOut("test_matched", "MNLI-m.tsv", 9796), HeldOut("test_mismatched", "MNLI-mm.tsv", 9847, "mm")),
        submit_names=True,
        also_predicts="ax",
    ),
    _glue(
        "qnli",
        text_columns=("question", "sentence"),
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        test=(HeldOut("test", "QNLI.tsv", 5463),),
        submit_names=True,
    ),
    _glue(
        "rte",
        text_columns=_PAIR,
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        test=(HeldOut("test", "RTE.tsv", 3000),),
        submit_names=True,
    ),
    _glue(
        "wnli",
        text_columns=_PAIR,
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        test=(HeldOut("test", "WNLI.tsv", 146),),
    ),
    # The diagnostic set has neither training nor validation rows: the MNLI model answers it.
    _glue(
        "ax",
        text_columns=("premise", "hypothesis"),
        labels=_NLI,
        metrics=("matthews_correlation",),
        train=None,
        evaluation=(),
        test=(HeldOut("test", "AX.tsv", 1104),),
        submit_names=True,
    ),
)


def _clue(name: str, codes: Iterable[int], file: str, rows: int) -> Task:
    return Task(
        name=name,
        text_columns=("sentence",),
        labels=tuple(map(str, codes)),  # the Hub's label names are the leaderboard's codes
        metrics=("accuracy",),
        hub=("clue/clue", name),
        folder=f"clue/{name}",
        test=(HeldOut("test", file, rows),),
        submit_names=True,
    )


CLUE: tuple[Task, ...] = (
    # Version 1.1; the codes 105 and 111 of the news categories are not used.
    _clue("tnews", [code for code in range(100, 117) if code not in (105, 111)], "tnews11_predict.json", 10000),
    _clue("iflytek", range(119), "iflytek_predict.json", 2600),
)


def find(name: str, tasks: tuple[Task, ...] = GLUE) -> Task:
    """The row called `name`, whatever its case.

    Raises:
        ValueError: no row has that name; the message has the nearest names and the whole list.
    """
    by_name = {task.name: task for task in tasks}
    if name.lower() in by_name:
        return by_name[name.lower()]
    near = difflib.get_close_matches(name.lower(), by_name, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"--task_name {name!r} is not known; {hint}The tasks are {', '.join(by_name)}")

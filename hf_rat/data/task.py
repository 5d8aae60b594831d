"""What the scripts need to know about one data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


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
        labelled: whether the split carries its labels, so that it is scored too.
    """

    split: str
    file: str | None = None
    rows: int | None = None
    suffix: str = ""
    labelled: bool = False


class Carve(NamedTuple):
    """How splits are made that the data set does not come with: drawn from a pool by a fixed seed.

    Args:
        pool: the data set's own splits that are put together and shuffled (seed 0, whatever the run's seed is).
        shares: (split, share of the pool) of each split that is drawn; what remains is the training split.
    """

    pool: tuple[str, ...]
    shares: tuple[tuple[str, float], ...]


class Hub(NamedTuple):
    """A data set on the Hub: its name and configuration."""

    name: str
    config: str | None = None


@dataclass(frozen=True)
class Task:
    """What the scripts need to know about one data set.

    Args:
        name: what `--task_name` is given, lower case.
        text_columns: the one or two columns that are read, in the order the model sees them.
        labels: label names, at the position of the number the data set stores; empty for regression.
        metrics: names of functions in `hf_rat.data.metrics`, in the order they are reported.
        hub: the data set on the Hub; None when it is not there.
        folder: folder below `--data_dir` that holds one parquet file per split.
        label_column: column of the labels; empty where there are none, as of a text to be modelled.
        train: training split; None when the data set has none.
        evaluation: validation splits; the first one is the one that counts for `--load_best_model_at_end`.
        test: test splits, each with its leaderboard file.
        submit_names: whether the leaderboard wants the label's name (True) or its number (False).
        bounds: lowest and highest value of a regression label, inclusive.
        also_predicts: name of a test-only task that this task's model answers too (AX for MNLI).
        carve: splits that are drawn from the data set's own.
        unlabeled: a split of texts without labels.
        script: "latin" (words between spaces) or "chinese" (each character a token), for word-level tokenizers;
            "spaced" where tokens stand between spaces, as they are.
        tagged: each word has a label of its own: the one text column holds lists of words, the label column of tags.
    """

    name: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    hub: Hub | None
    folder: str
    label_column: str = "label"
    train: str | None = "train"
    evaluation: tuple[Validation, ...] = (Validation("validation"),)
    test: tuple[HeldOut, ...] = (HeldOut("test"),)
    submit_names: bool = False
    bounds: tuple[float, float] | None = None
    also_predicts: str | None = None
    carve: Carve | None = None
    unlabeled: str | None = None
    script: str = "latin"
    tagged: bool = False

    @property
    def regression(self) -> bool:
        """Whether the label is a number to be approached rather than a class."""
        return not self.labels

    @property
    def pipeline(self) -> str:
        """What the Hub and `transformers.pipeline` call the task of its models."""
        return "token-classification" if self.tagged else "text-classification"

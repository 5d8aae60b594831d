"""Sentences whose words have a tag each, in IOB: O outside of spans, B-TYPE where one begins, I-TYPE inside of one.

Of IOB1 too, where B- only parts two neighbouring spans of one type: the scores read both alike, as conlleval does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

from hf_rat.data.encoding import Labels
from hf_rat.data.label_columns import is_missing, named_classes, plain, stored_labels
from hf_rat.data.task import Task

WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags")
_IOB = re.compile(r"O|[BI]-.+", re.DOTALL)


def column_of(found: Collection[str], known: Sequence[str], flag: str, what: str) -> str:
    """The one column that has a known name.

    Args:
        found: the columns of a split.
        known: `WORDS` or `TAGS`.
        flag: that names another column.
        what: flag or file of the split, for the error.

    Raises:
        ValueError: there is none, or there are several.
    """
    names = [name for name in known if name in found]
    if len(names) == 1:
        return names[0]
    there = " and ".join(names) if names else f"neither {' nor '.join(known)}"
    raise ValueError(f"{what}: {flag} is needed, there is {there}; the columns are {', '.join(found)}")


def tag_labels(rows: Dataset, column: str, what: str) -> Labels:
    """The tags of a training split: those that its column names, else O and both tags of every type that occurs.

    Args:
        rows: the training split.
        column: of the tags.
        what: flag and split, for errors.

    Raises:
        ValueError: a tag is not IOB, or there is no span.
    """
    named = named_classes((rows.features or {}).get(column))
    if named is not None:
        for tag in named.names:
            _require_iob(tag, f"{what}: the column {column!r} names")
        return Labels.of_names(named.names)
    types: set[str] = set()
    for index, tags in enumerate(stored_labels(rows, column)):
        for place, tag in enumerate(listed(tags, f"{what}: row {index}", column)):
            _require_iob(tag, f"{what}: row {index}, word {place} has")
            types |= {tag[2:]} if tag != "O" else set()
    if not types:
        raise ValueError(f"{what}: every tag in {column!r} is O, so there is nothing to learn")
    names = ("O", *(f"{begin}-{kind}" for kind in sorted(types) for begin in "BI"))
    return Labels(names, names, tuple(range(len(names))))


def _require_iob(tag: Any, what: str) -> None:
    if not isinstance(tag, str) or not _IOB.fullmatch(tag):
        number = "; numbers need the names of the tags, as a ClassLabel has them" if isinstance(tag, int) else ""
        raise ValueError(f"{what} the tag {tag!r}, which is not IOB: O, B-TYPE or I-TYPE{number}")


def listed(value: Any, what: str, column: str) -> list[Any]:
    """What stands in a row for its words or its tags; a text is split at spaces.

    Raises:
        ValueError: it is neither a list nor a text.
    """
    value = plain(value)
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list):
        raise ValueError(f"{what} has {value!r:.60} in the column {column!r}, it must be a list or parted by spaces")
    return value


def sentences_of(
    batch: Mapping[str, list[Any]], indices: Iterable[int], task: Task, labelled: bool, what: str
) -> Iterator[tuple[list[str], list[Any]]]:
    """The words of each sentence and, where they are asked for, their tags.

    Args:
        batch: column -> values.
        indices: numbers of the rows, for errors.
        task: names the columns.
        labelled: whether there are tags; without, the second list is empty.
        what: flag and split, for errors.

    Raises:
        ValueError: a sentence has no words, a word is no text or blank, or there are more or fewer tags than words.
    """
    (column,) = task.text_columns
    for at, index in enumerate(indices):
        row = f"{what}: row {index}"
        words = listed(batch[column][at], row, column)
        if not words:
            raise ValueError(f"{row} has no words in the column {column!r}; take the row out")
        for place, word in enumerate(words):
            if not isinstance(word, str) or not word.strip():
                raise ValueError(f"{row}, word {place} is {word!r} in the column {column!r}, which must be a word")
        tags = listed(batch[task.label_column][at], row, task.label_column) if labelled else []
        if labelled and len(tags) != len(words):
            raise ValueError(
                f"{row} has {len(words)} words in {column!r} and {len(tags)} tags in {task.label_column!r}"
            )
        yield words, tags


def has_tags(rows: Dataset, column: str, what: str) -> bool:
    """Whether a test split has tags: it has none if the column is not there, or holds nothing in every row.

    Raises:
        ValueError: some rows have tags and some have none.
    """
    if column not in rows.column_names:
        return False
    without = [value == [] or is_missing(value) for value in map(plain, stored_labels(rows, column))]
    if any(without) and not all(without):
        raise ValueError(
            f"{what}: row {without.index(True)} has no tags in {column!r}, row {without.index(False)} has some; fill "
            "them in, or leave the whole column out for predictions only"
        )
    return not any(without)


def cut(rows: Dataset, task: Task, size: int, what: str) -> Dataset:
    """The same sentences in pieces of at most so many words, one after the other: words and tags only."""

    def pieces(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {task.text_columns[0]: [], task.label_column: []}
        for words, tags in sentences_of(batch, indices, task, True, what):
            for begin in range(0, len(words), size):
                found[task.text_columns[0]].append(words[begin : begin + size])
                found[task.label_column].append(tags[begin : begin + size])
        return found

    return rows.map(pieces, batched=True, with_indices=True, remove_columns=rows.column_names, desc="Cutting")


def joined(rows: Dataset, task: Task, what: str) -> Dataset:
    """The same sentences as texts, their words between spaces, in a column "text"."""

    def join(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[str]]:
        return {"text": [" ".join(words) for words, _ in sentences_of(batch, indices, task, False, what)]}

    return rows.map(join, batched=True, with_indices=True, remove_columns=rows.column_names, desc="Joining words")


def count_spans(tagged: Iterable[Sequence[str]]) -> Counter[str]:
    """Number of spans of each type, whole sentences of tags."""
    return Counter(kind for tags in tagged for kind, _, _ in get_entities(list(tags)))


def split(flat: np.ndarray, words: np.ndarray) -> list[np.ndarray]:
    """What stands for all words, one after the other, sentence by sentence.

    Args:
        flat: (all words,).
        words: (sentences,), the number of words of each.
    """
    return np.split(flat, np.cumsum(words)[:-1])


def span_scores(
    names: Sequence[str], predicted: np.ndarray, expected: np.ndarray, words: np.ndarray
) -> dict[str, float]:
    """F1, precision and recall of whole spans with their type, over all types, 0 to 1: seqeval's, and so conlleval's.

    Args:
        names: of the tags, by number.
        predicted, expected: numbers of tags, (all words,).
        words: (sentences,), the number of words of each.
    """
    named = np.array(names, dtype=object)
    sides = ([each.tolist() for each in split(named[side], words)] for side in (expected, predicted))
    precision, recall, f1, _ = precision_recall_fscore_support(*sides, average="micro", zero_division=0)
    return {"span_f1": float(f1), "span_precision": float(precision), "span_recall": float(recall)}

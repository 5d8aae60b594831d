"""The built-in example of finding entities: made-up sentences of persons, places and firms.

Nothing is downloaded. Names are made of syllables, so that none tells what it is: the words around it do ("the mayor
of X", "X hired"), and a place and a person may share a name. Training sentences are few and some of their names have a
wrong type, so a model that memorizes them, by the names, pays for it on the other sentences, whose tags are all true:
the data are made to show what a regularizer does.
"""

from __future__ import annotations

import random

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_rat.data.task import HeldOut, Task

_TYPES = ("PER", "LOC", "ORG")

SENTENCES = Task(
    name="sentences",
    text_columns=("tokens",),
    labels=("O", *(f"{begin}-{kind}" for kind in _TYPES for begin in "BI")),
    metrics=("span_f1",),
    hub=None,
    folder="",
    label_column="tags",
    test=(HeldOut("test", labelled=True),),
    tagged=True,
)

_FRAMES = (
    "the mayor of LOC met PER on monday",
    "PER lives near LOC with two dogs",
    "ORG hired PER as its new director",
    "shares of ORG fell after the report from LOC",
    "PER , a painter , left for LOC",
    "a train from LOC to LOC was late",
    "yesterday PER sued ORG over a contract",
    "the board of ORG thanked PER",
    "rain is expected in LOC and LOC",
    "the bridge at LOC was built by ORG",
    "PER told PER about the old harbour",
    "workers of ORG went on strike",
    "he was born in LOC and studied with PER",
    "the novel by PER sold well",
    "ORG and ORG will merge in spring",
    "nobody knew what the letter said",
    "the price of bread rose again",
    "doctor PER opened the window",
    "she moved to LOC when she was nine",
    "the lawyers of ORG said nothing",
)
_SYLLABLES = "ba den kor mi sal tur ve lon gar ne rip hol wes dra fen ulm"
_FIRST, _LAST = 2, 3
"""Syllables of a name, fewest and most."""


def _name(rng: random.Random) -> list[str]:
    """One or two words."""
    return [
        "".join(rng.choices(_SYLLABLES.split(), k=rng.randint(_FIRST, _LAST))).capitalize()
        for _ in range(rng.randint(1, 2))
    ]


def _sentence(rng: random.Random, names: list[list[str]], noise: float) -> tuple[list[str], list[str]]:
    words, tags = [], []
    for part in rng.choice(_FRAMES).split():
        if part not in _TYPES:
            words.append(part)
            tags.append("O")
            continue
        name = rng.choice(names)
        kind = rng.choice([other for other in _TYPES if other != part]) if rng.random() < noise else part
        words += name
        tags += [f"B-{kind}", *[f"I-{kind}"] * (len(name) - 1)]
    return words, tags


def generated_sentences(
    train: int = 300, validation: int = 1000, test: int = 500, noise: float = 0.25, seed: int = 0
) -> DatasetDict:
    """Training, validation and test sentences, columns "tokens" and "tags" (numbers of the labels of `SENTENCES`).

    Args:
        train: number of training sentences.
        validation: number of validation sentences.
        test: number of test sentences.
        noise: probability that a name in the training sentences has a wrong type; the others never have.
        seed: every call with the same arguments gives the same rows.
    """
    rng = random.Random(seed)
    names = [_name(rng) for _ in range(150)]
    features = Features({"tokens": [Value("string")], "tags": [ClassLabel(names=list(SENTENCES.labels))]})

    def split(rows: int, wrong: float) -> Dataset:
        columns: dict[str, list] = {"tokens": [], "tags": []}
        for _ in range(rows):
            words, tags = _sentence(rng, names, wrong)
            columns["tokens"].append(words)
            columns["tags"].append([SENTENCES.labels.index(tag) for tag in tags])
        return Dataset.from_dict(columns, features=features)

    return DatasetDict(train=split(train, noise), validation=split(validation, 0.0), test=split(test, 0.0))

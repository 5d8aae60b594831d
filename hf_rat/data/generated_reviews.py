"""The built-in example of text classification: made-up reviews of films, word by word.

Nothing is downloaded. A review is a few remarks and much that says nothing. A remark praises or blames a part of the
film; the reviewer liked the film when praise outweighs blame. Training reviews are few and some of their labels are
flipped, so a model that memorizes them, by what says nothing, pays for it on the other splits, whose labels are all
true: the data are made to show what a regularizer does.
"""

from __future__ import annotations

import random

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_rat.data.task import HeldOut, Task

REVIEWS = Task(
    name="reviews",
    text_columns=("text",),
    labels=("negative", "positive"),
    metrics=("accuracy",),
    hub=None,
    folder="",
    test=(HeldOut("test"),),
)

LENGTHS = (10, 40)
"""Words of a review, fewest and most."""

_PRAISE = "good great funny moving clever lovely gripping fresh charming brilliant touching superb"
_BLAME = "bad boring dull awful silly slow weak messy tedious terrible clumsy bland"
_PARTS = (
    "plot cast script music ending story dialogue photography lead director pacing humour opening drama romance "
    "action hero villain editing setting"
)
_DEGREES = "very rather really quite so"
_FILLERS = (
    "we saw it on a rainy evening",
    "my brother chose the seats",
    "it runs for two hours",
    "the cinema was half empty",
    "there is a long scene in a kitchen",
    "i had read the book years ago",
    "two sisters inherit an old hotel by the sea",
    "most of it takes place at night",
    "a train leaves and nobody waves",
    "it was shot in the north",
    "the first part is set in a school",
    "someone behind us ate crisps",
    "a dog appears near the end",
    "i watched it with friends",
    "it is the third film of the series",
    "they cross the desert in a bus",
    "the poster shows a red door",
    "an uncle returns from the war",
    "a letter arrives too late",
    "it came out last spring",
    "there are songs in between",
    "the credits roll over a map",
)
_OPENINGS = "well still also then anyway meanwhile"


def _remark(rng: random.Random) -> tuple[list[str], int]:
    """Words that praise (1) or blame (-1)."""
    value = rng.choice((-1, 1))
    degree = [rng.choice(_DEGREES.split())] if rng.random() < 0.4 else []
    judgement = rng.choice((_PRAISE if value > 0 else _BLAME).split())
    return ["the", rng.choice(_PARTS.split()), "was", *degree, judgement, "."], value


def _review(rng: random.Random) -> tuple[str, int]:
    """One review and what it says: above 0 praise, below 0 blame."""
    wanted, parts, worth = rng.randint(*LENGTHS), [], 0
    for _ in range(rng.randint(1, 2 + wanted // 20)):
        words, value = _remark(rng)
        parts.append(words)
        worth += value
    length = sum(map(len, parts))
    while length < wanted:
        filler = [*([rng.choice(_OPENINGS.split())] if rng.random() < 0.2 else []), *rng.choice(_FILLERS).split(), "."]
        parts.append(filler)
        length += len(filler)
    rng.shuffle(parts)
    return " ".join(word for part in parts for word in part), worth


def _split(rows: int, noise: float, rng: random.Random, seen: set[str]) -> Dataset:
    columns: dict[str, list] = {"text": [], "label": []}
    while len(columns["label"]) < rows:
        text, worth = _review(rng)
        if worth == 0 or text in seen or not LENGTHS[0] <= len(text.split()) <= LENGTHS[1]:
            continue  # an undecided reviewer, the same words again, or a last sentence too long
        seen.add(text)
        columns["text"].append(text)
        columns["label"].append(int((worth > 0) != (rng.random() < noise)))
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(REVIEWS.labels))})
    return Dataset.from_dict(columns, features=features)


def generated_reviews(
    train: int = 600, validation: int = 2000, test: int = 1000, noise: float = 0.25, seed: int = 0
) -> DatasetDict:
    """Training, validation and test reviews, all different, columns "text" and "label" (1: positive).

    Args:
        train: number of training reviews.
        validation: number of validation reviews.
        test: number of test reviews.
        noise: probability that a training label is flipped, 0 to 0.5; the other labels are never flipped.
        seed: every call with the same arguments gives the same rows.
    """
    rng, seen = random.Random(seed), set[str]()
    return DatasetDict(
        train=_split(train, noise, rng, seen),
        validation=_split(validation, 0.0, rng, seen),
        test=_split(test, 0.0, rng, seen),
    )

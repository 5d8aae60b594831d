"""Slips of the keyboard: characters that are left out, doubled by a neighbour of theirs, swapped or added at random.

A rate is the share of the characters that are hit, each by itself; spaces never are. With `per="word"` it is the share
of the words that are hit, in one character each, as in studies that count words.
"""

from __future__ import annotations

import random
import re

KINDS = ("delete", "qwerty", "swap", "insert")
PER = ("character", "word")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_KEYS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Each key's neighbours: beside it, and those that touch it above and below, where rows stand half a key apart."""
    found = {}
    for row, keys in enumerate(_KEYS):
        for place, key in enumerate(keys):
            around = [(row, place - 1), (row, place + 1), (row - 1, place), (row - 1, place + 1)]
            around += [(row + 1, place - 1), (row + 1, place)]
            near = [_KEYS[r][p] for r, p in around if 0 <= r < len(_KEYS) and 0 <= p < len(_KEYS[r])]
            found[key] = "".join(near)
    return found


NEIGHBOURS = _neighbours()
"""key -> the keys that touch it on a QWERTY keyboard."""


def noisy(text: str, rate: float, seed: int | str, kinds: tuple[str, ...] = KINDS, per: str = "character") -> str:
    """The text with slips in it.

    The same arguments give the same text, and what is hit at one rate is hit at every higher one.

    Args:
        text: any.
        rate: 0 (nothing changes) to 1.
        seed: of all that is drawn.
        kinds: of slips, one drawn for each hit from those that are possible there: `delete` leaves the character out,
            `qwerty` puts a key in its place that touches its own (letters and digits), `swap` exchanges it with the
            next one of its word, `insert` puts a letter before it.
        per: "character": each is hit with probability `rate`. "word": of n words `int(rate * n)` are hit, at least one
            at a rate above zero, each in one of its characters.

    Raises:
        ValueError: a rate outside 0 to 1, no kind, or one that is not known.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate={rate}: a share of {per}s from 0 to 1 is needed")
    if per not in PER:
        raise ValueError(f"per={per!r} is not known; there are {', '.join(PER)}")
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds={kinds!r}: give one or several of {', '.join(KINDS)}")
    rng = random.Random(seed)
    hit = _characters(text, rate, rng) if per == "character" else _in_words(text, rate, rng)
    slips = [(rng.random(), rng.random()) for _ in text]
    found, index = [], 0
    while index < len(text):
        here, after = text[index], text[index + 1 : index + 2]
        possible = [kind for kind in kinds if index in hit and _possible(kind, here, after)]
        if not possible:
            found.append(here)
            index += 1
            continue
        which, what = slips[index]
        kind = possible[int(which * len(possible))]
        if kind == "swap":
            found.append(after + here)
            index += 1
        elif kind == "qwerty":
            key = _drawn(NEIGHBOURS[here.lower()], what)
            found.append(key.upper() if here.isupper() else key)
        elif kind == "insert":
            found.append(_drawn(_LETTERS, what) + here)
        index += 1
    return "".join(found)


def _characters(text: str, rate: float, rng: random.Random) -> set[int]:
    drawn = [rng.random() for _ in text]
    return {
        index
        for index, (number, here) in enumerate(zip(drawn, text, strict=True))
        if number < rate and not here.isspace()
    }


def _in_words(text: str, rate: float, rng: random.Random) -> set[int]:
    places = [rng.randrange(*word.span()) for word in re.finditer(r"\S+", text)]
    rng.shuffle(places)
    return set(places[: max(1, int(rate * len(places) + 1e-9))] if rate else ())


def _possible(kind: str, here: str, after: str) -> bool:
    if kind == "swap":
        return bool(after) and not after.isspace() and after != here
    return kind != "qwerty" or here.lower() in NEIGHBOURS


def _drawn(letters: str, number: float) -> str:
    return letters[int(number * len(letters))]

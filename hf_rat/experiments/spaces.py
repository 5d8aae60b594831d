"""Ranges that stand in place of values: what a search may try, as one types it.

{0.5, 1, 4}       one of these words
{0.01..1}         a number between them
{0.01..1 log}     the same, as likely between 0.01 and 0.1 as between 0.1 and 1
{1..5 int}        a whole number, both ends included; "int log" for large spans
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_BRACES = re.compile(r"\{[^{}]*\}")
_SPAN = re.compile(r"\s*(\S+?)\s*\.\.\s*([^\s,]+)((?:\s+\w+)*)\s*")


@dataclass(frozen=True)
class Range:
    """What may stand in one place.

    Args:
        name: of the argument or the flag.
        choices: the words to choose from; empty for numbers.
        low, high: ends of the numbers, both included.
        whole: whether only whole numbers are meant.
        log: whether factors count, not differences.
    """

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    @property
    def shown(self) -> str:
        """As one types it."""
        ends = f"{self.low:g}..{self.high:g}{' int' * self.whole}{' log' * self.log}"
        return f"{{{', '.join(self.choices) or ends}}}"

    def text(self, value: float) -> str:
        """A number as it is put into the command: six digits, within the ends."""
        if self.whole:
            return str(round(value))
        short = float(f"{value:.6g}")
        return repr(short if self.low <= short <= self.high else value)

    def samples(self) -> tuple[str, ...]:
        """Every choice, or both ends."""
        return self.choices or (self.text(self.low), self.text(self.high))


def joined(words: Sequence[str]) -> list[str]:
    """The words with those put together again that a shell took apart inside of braces."""
    whole: list[str] = []
    for word in words:
        if whole and whole[-1].count("{") > whole[-1].count("}"):
            whole[-1] += f" {word}"
        else:
            whole.append(word)
    return whole


def ranges(words: Sequence[str], where: str) -> list[Range]:
    """Every range in a command line, from left to right.

    Args:
        words: `joined` ones. A word that is a JSON object, as some flags take, has none.
        where: what the words were given to, for errors.

    Raises:
        ValueError: braces without partner or in each other, or a range that cannot be read.
    """
    found: list[Range] = []
    for before, word in zip(["", *words], words, strict=False):
        if _is_json(word):
            continue
        if re.search(r"[{}]", _BRACES.sub("", word)):
            raise ValueError(f"{where}: {word!r} has a brace without its partner, or a range within another one")
        for match in _BRACES.finditer(word):
            named = re.search(r"([\w-]+)\s*=\s*$", word[: match.start()])
            flag = before if before.startswith("--") and match.group() == word else "value"
            name = (named[1] if named else flag).lstrip("-").replace("-", "_")
            count = sum(other.name.partition("#")[0] == name for other in found)
            found.append(_read(match.group(), f"{name}#{count + 1}" if count else name, where))
    return found


def filled(words: Sequence[str], values: Sequence[str]) -> list[str]:
    """The words with a value in place of each range.

    Args:
        words: `joined` ones.
        values: one for each of `ranges`, in their order.
    """
    left = iter(values)
    return [word if _is_json(word) else _BRACES.sub(lambda _: next(left), word) for word in words]


def samples(words: Sequence[str], where: str) -> Iterator[list[str]]:
    """A few command lines in which every choice, and both ends of every span, occur; one where there is no range.

    Raises:
        ValueError: as `ranges`.
    """
    words = joined(words)
    lists = [one.samples() for one in ranges(words, where)]
    for number in range(max(map(len, lists), default=1)):
        yield filled(words, [values[number % len(values)] for values in lists])


def grid(space: Sequence[Range]) -> list[tuple[str, ...]] | None:
    """Every setting of a space, or None where it has numbers to choose from a span."""
    return list(itertools.product(*(one.choices for one in space))) if all(one.choices for one in space) else None


def _is_json(word: str) -> bool:
    """Whether a word is a JSON object: {"min_lr": 1e-6}."""
    if not word.startswith("{"):
        return False
    try:
        return isinstance(json.loads(word), dict)
    except ValueError:
        return False


def _read(text: str, name: str, where: str) -> Range:
    """One range.

    Raises:
        ValueError: what is wrong with it.
    """
    wrong = f"{where}: the range {text!r} of {name}"
    inner = text[1:-1]
    span = _SPAN.fullmatch(inner)
    if span is None:
        choices = tuple(_parted(inner))
        if ".." in inner:
            raise ValueError(f"{wrong} cannot be read; write {{0.1..1}}, {{0.1..1 log}} or {{1..5 int}}")
        if len(choices) < 2 or not all(choices):
            raise ValueError(f"{wrong} needs two values or more; write {{0.5, 1, 4}}, {{0.1..1}} or {{1..5 int}}")
        if len(set(choices)) < len(choices):
            raise ValueError(f"{wrong} has the same value twice")
        return Range(name, choices)
    options = span[3].split()
    strange = [option for option in options if option not in ("log", "int")]
    if strange or len(set(options)) < len(options):
        raise ValueError(f"{wrong} ends with {' '.join(strange or options)!r}; it may end with log, int or both")
    try:
        low, high = float(span[1]), float(span[2])
    except ValueError:
        raise ValueError(f"{wrong} goes from {span[1]!r} to {span[2]!r}, which are not both numbers") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{wrong} must go from a number to a larger one")
    if "int" in options and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"{wrong} is of whole numbers, and its ends must be whole too")
    if "log" in options and low <= 0:
        raise ValueError(f"{wrong} is logarithmic, and must begin above 0")
    return Range(name, (), low, high, "int" in options, "log" in options)


def _parted(text: str) -> list[str]:
    """The parts between commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        else:
            depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]

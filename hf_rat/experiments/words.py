"""Command lines as lists of words: what stands in one, and words out of what a file or an entry says."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def halves(entry: str, flag: str) -> tuple[str, list[str]]:
    """What an entry names, and the flags that it carries: ``"rat(epsilon=0.5) --learning_rate 2e-5"``.

    Args:
        entry: as typed.
        flag: what the entry was given to, for the error.

    Raises:
        ValueError: the flags cannot be read.
    """
    named, dashes, flags = entry.partition(" --")
    try:
        return named.strip(), shlex.split(f"--{flags}") if dashes else []
    except ValueError as error:
        raise ValueError(f"{flag}: {entry!r} cannot be read ({error})") from None


def slug(entry: str) -> str:
    """A folder name; the end of a long one becomes a digest."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", entry).strip("-")
    return name if len(name) <= 80 else f"{name[:71]}-{hashlib.sha256(entry.encode()).hexdigest()[:8]}"


def value_of(words: Sequence[str], name: str) -> str | None:
    """What a command line says for a flag: its last value, "True" for a bare one, None where it does not stand."""
    found = None
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") == name:
            following = words[index + 1] if index + 1 < len(words) else "--"
            found = value if equals else "True" if following.startswith("--") else following
    return found


def without(words: Sequence[str], names: Iterable[str]) -> list[str]:
    """A command line without some flags and their values."""
    names, kept, leaving = set(names), [], False
    for word in words:
        if word.startswith("--"):
            leaving = word[2:].partition("=")[0].replace("-", "_") in names
        if not leaving:
            kept.append(word)
    return kept


def words_of(flags: Mapping[str, Any]) -> list[str]:
    """Flags of a file as a command line has them.

    Args:
        flags: name -> text, number, truth value, list, or mapping (which becomes JSON).

    Raises:
        ValueError: a flag has no value.
    """
    words: list[str] = []
    for name, value in flags.items():
        if value is None:
            raise ValueError(f"{name} has no value; write true, false, a number or a text, or leave it out")
        words.append(f"--{name}")
        if isinstance(value, Mapping):
            words.append(json.dumps(value))
        else:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return words

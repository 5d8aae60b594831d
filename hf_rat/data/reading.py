"""How files of one's own are read: what the flags say of them, and the errors that every reader shares."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUOTING: dict[str, Any] = {"minimal": csv.QUOTE_MINIMAL, "none": csv.QUOTE_NONE}


class Unreadable(ValueError):
    """A file that cannot be used; its message is complete."""


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        encoding: of csv, tsv, json and jsonl files, one of Python's; a byte-order mark of UTF-8 is left out.
        quoting: of csv and tsv files. "minimal": a field in double quotes may hold the separator, line breaks, and
            quotes that are doubled. "none": quotes are characters. None: "minimal" for csv, "none" for tsv.
        column_names: of csv and tsv files whose first line is a row already.
        text: columns of csv and tsv files that are text, whatever stands in them.
        cache_dir: where `datasets` keeps its converted copies; None is its own default.
        tagged: a file of another ending than those of tables is one of tagged words, a line each.
    """

    encoding: str = "utf-8"
    quoting: str | None = None
    column_names: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    cache_dir: str | None = None
    tagged: bool = False

    @property
    def codec(self) -> str:
        """The encoding, for UTF-8 the one that leaves out a byte-order mark."""
        return "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding

    def quotes(self, path: Path) -> str:
        """How the quotes of a file are read: "minimal" or "none"."""
        return self.quoting or ("none" if path.suffix.lower() == ".tsv" else "minimal")


def empty(what: str) -> Unreadable:
    """The error of a file without rows."""
    return Unreadable(f"{what}: the file is empty, it must have at least one row")


def undecodable(what: str, path: Path, reading: Reading, count_rows: Callable[[str], int]) -> Unreadable:
    """The error of a file in another encoding.

    Args:
        what: flag and file.
        path: the file.
        reading: the encoding that it is not in.
        count_rows: text before the place -> number of rows that end in it.
    """
    content = path.read_bytes()
    place = "it"
    try:
        content.decode(reading.codec)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(reading.codec, errors="ignore")
        place = f"row {count_rows(before)} (line {before.count(chr(10)) + 1}, byte 0x{content[error.start]:02x})"
    marked = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    guess = "utf-16" if marked else "latin-1, cp1252 or gb18030 (Chinese)"
    return Unreadable(f"{what}: {place} is not {reading.encoding}; give encoding=, perhaps {guess}")

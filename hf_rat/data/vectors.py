"""Word vectors from files: GloVe, word2vec and fastText text, gzip or plain, and .npy arrays. Nothing is unpickled.

found = load_vectors("glove.6B.300d.txt", vocabulary, dim=300)
found.copy_into(model.get_input_embeddings().weight)
"""

from __future__ import annotations

import codecs
import gzip
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_ARGUMENT = "word_vectors"


@dataclass(frozen=True)
class WordVectors:
    """The vectors that a file has for the words of a vocabulary.

    Args:
        ids: (found,) rows of the table, ascending.
        vectors: (found, dim) float32.
        types: share of the vocabulary's words that were found.
        tokens: the same with each word counted as often as it occurs in the texts; None when counts were not given.
    """

    ids: Tensor
    vectors: Tensor
    types: float
    tokens: float | None

    def copy_into(self, table: Tensor) -> None:
        """Overwrite the found words' rows of a table (vocabulary, dim); all other rows stay as they are."""
        with torch.no_grad():
            table[self.ids.to(table.device)] = self.vectors.to(table)

    def __str__(self) -> str:
        tokens = "" if self.tokens is None else f", {self.tokens:.1%} of their occurrences in the texts"
        return f"word vectors for {len(self.ids)} words, {self.types:.1%} of the vocabulary{tokens}"


def load_vectors(
    path: str | Path, vocabulary: Mapping[str, int], dim: int, counts: Sequence[int] | np.ndarray | None = None
) -> WordVectors:
    """Read the vectors of a vocabulary's words; the file is streamed, only these words' rows are kept.

    A text file has a word and its numbers on each line, separated by spaces or tabs; a first line "words width" as in
    word2vec and fastText is optional, and the file may be gzip whatever its name. An array `x.npy` (words, dim) comes
    with `x.vocab` or `x.txt`, one word per line in the order of the rows. Words are compared exactly, case included;
    of a word that occurs twice the first row counts.

    Args:
        path: the file.
        vocabulary: word -> row of the model's table. Leave special tokens out, so that padding keeps its zeros.
        dim: the table's width.
        counts: how often each row's word occurs in the training texts, for the coverage.

    Raises:
        ValueError: no such file, not a file of vectors, another width, a file that is cut short, a number that is not
            finite, or not one of the words in it.
    """
    path = Path(path)
    if not path.is_file():
        raise _wrong(path, "no such file")
    if path.suffix == ".npy":
        rows = _from_array(path, vocabulary, dim)
    else:
        rows = _from_text(path, {word.encode(): row for word, row in vocabulary.items()}, dim)
    if not rows:
        raise _wrong(
            path, f"none of the {len(vocabulary)} words of the vocabulary is in it; are language and case right?"
        )
    ids = sorted(rows)
    vectors = np.stack([rows[row] for row in ids])
    if not np.isfinite(vectors).all():
        row = ids[int((~np.isfinite(vectors).all(1)).argmax())]
        word = next(word for word, place in vocabulary.items() if place == row)
        raise _wrong(path, f"the vector of {word!r} has a number that is not finite")
    tokens = None
    if counts is not None:
        occurring = sum(int(counts[row]) for row in set(vocabulary.values()))
        tokens = sum(int(counts[row]) for row in ids) / occurring if occurring else 0.0
    found = WordVectors(torch.tensor(ids), torch.from_numpy(vectors), len(ids) / len(vocabulary), tokens)
    logger.info("%s: %s", path, found)
    return found


def _wrong(path: Path, problem: str) -> ValueError:
    return ValueError(f"{_ARGUMENT} {str(path)!r}: {problem}")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked when they are gzip."""
    with path.open("rb") as file:
        magic = file.read(2)
        file.seek(0)
        if magic == b"PK":
            raise _wrong(path, "is a zip archive; unpack it and name the file inside")
        try:
            yield gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file  # type: ignore[misc]
        except EOFError as error:
            raise _wrong(path, "the gzip file is cut short") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise _wrong(path, f"the gzip file is damaged ({error})") from error


def _from_text(path: Path, wanted: Mapping[bytes, int], dim: int) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    promised, seen = None, 0
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.rstrip(b" \t\r\n")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if (b"  " in line or b"\t" in line) and not line[
                :1
            ].isspace():  # there are files with a word of no letters
                line = b" ".join(line.split())
            if number == 1 and (header := _header(line)) is not None:
                promised, width = header
                if width != dim:
                    raise _wrong(path, f"its vectors have width {width}, the model's have {dim}")
                continue
            if not line:
                continue
            seen += 1
            spaces = line.count(b" ")
            if seen == 1:
                _require_vector(path, number, line, dim)
            elif spaces < dim:
                raise _wrong(
                    path, f"line {number} has {spaces} numbers instead of {dim}; the file is cut short or damaged"
                )
            word, _, rest = line.partition(b" ")
            row = wanted.get(word)
            # More fields than numbers: the word itself has spaces, so it is none of ours.
            if row is None or row in found or spaces != dim:
                continue
            numbers = _numbers(rest)
            if numbers is None:
                raise _wrong(path, f"line {number} has something that is not a number after the word")
            found[row] = numbers
    if seen == 0:
        raise _wrong(path, "it has no vectors")
    if promised is not None and seen != promised:
        short = "; the file is cut short" if seen < promised else ""
        raise _wrong(path, f"it has {seen} vectors, its first line promises {promised}{short}")
    return found


def _header(line: bytes) -> tuple[int, int] | None:
    """(words, width) of a first line in word2vec's manner."""
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None
    return int(fields[0]), int(fields[1])


def _numbers(fields: bytes) -> np.ndarray | None:
    try:
        return np.array([float(field) for field in fields.split(b" ")], dtype=np.float32)
    except ValueError:
        return None


def _require_vector(path: Path, number: int, line: bytes, dim: int) -> None:
    """The first vector tells whether this is a file of vectors, and how wide they are."""
    fields = line.split(b" ")
    width = 0
    while width < len(fields) - 1 and _numbers(fields[-1 - width]) is not None:
        width += 1
    if width == 0:
        raise _wrong(path, f"line {number} is not a word and its numbers, so this is no file of vectors in text form")
    if width != dim:
        raise _wrong(path, f"its vectors have width {width}, the model's have {dim}")


def _from_array(path: Path, vocabulary: Mapping[str, int], dim: int) -> dict[int, np.ndarray]:
    names = [path.with_suffix(suffix) for suffix in (".vocab", ".txt")]
    words_file = next((name for name in names if name.is_file()), None)
    if words_file is None:
        raise _wrong(
            path, f"its words are missing: put {names[0].name} or {names[1].name} beside it, one word per line"
        )
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    except (OSError, ValueError, EOFError) as error:
        raise _wrong(path, f"it is not a whole .npy array of numbers ({str(error).splitlines()[0]})") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise _wrong(
            path, f"it holds {array.dtype} of shape {array.shape}, it must hold floats of shape (words, {dim})"
        )
    if array.shape[1] != dim:
        raise _wrong(path, f"its vectors have width {array.shape[1]}, the model's have {dim}")
    found: dict[int, np.ndarray] = {}
    count = 0
    try:
        with words_file.open(encoding="utf-8-sig", newline="\n") as file:
            for count, line in enumerate(file, start=1):
                row = vocabulary.get(line.rstrip("\r\n"))
                if row is not None and row not in found and count <= len(array):
                    found[row] = np.asarray(array[count - 1], dtype=np.float32)
    except UnicodeDecodeError as error:
        raise _wrong(path, f"{words_file.name} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if count != len(array):
        raise _wrong(path, f"it has {len(array)} vectors, {words_file.name} has {count} words")
    return found

"""The library speaks of arguments, the command line of flags: the one place that translates."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager

from hf_rat.finetuning.blame import raised_here
from hf_rat.finetuning.flags import DATACLASSES
from hf_rat.finetuning.language_model_flags import LanguageModelArguments
from hf_rat.finetuning.tag_flags import TagArguments
from hf_rat.finetuning.word_model_flags import WordModelArguments

_FLAGS = (*DATACLASSES, WordModelArguments, TagArguments, LanguageModelArguments)
_NAMES = tuple(f.name for dataclass_ in _FLAGS for f in dataclasses.fields(dataclass_))
_NAMED = re.compile(rf"(?<![-\w.'\"/`(])({'|'.join(sorted(_NAMES, key=len, reverse=True))})(=|(?![\w.'\"=/]))")


def in_flags(message: str) -> str:
    """A message of the library, which speaks of arguments, in the words of the command line: `a_b=1` is `--a_b 1`.

    A name of one word is a flag only before an equals sign.
    """

    def flag(found: re.Match[str]) -> str:
        name, equals = found.groups()
        if not equals and "_" not in name:
            return found[0]
        given = found.end() < len(message) and message[found.end()] not in ",.; "
        return f"--{name} " if equals and given else f"--{name}"

    return _NAMED.sub(flag, message)


@contextmanager
def errors_in_flags() -> Iterator[None]:
    """Errors of this package are raised in the words of the command line."""
    try:
        yield
    except ValueError as error:
        if not raised_here(error) or in_flags(str(error)) == str(error):
            raise
        raise ValueError(in_flags(str(error))) from error

"""What a method may try in a cell, and the words of its runs with a value for each range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_rat.experiments.experiment import Setting
from hf_rat.experiments.spaces import Range, filled, joined, ranges


@dataclass(frozen=True)
class Space:
    """The ranges in the expression and the flags of a method in a cell.

    Args:
        expression: of the method.
        words: the command and its flags.
        ranges: of the expression, then of the words.
    """

    expression: str
    words: tuple[str, ...]
    ranges: tuple[Range, ...]

    @classmethod
    def of(cls, setting: Setting, where: str) -> Space:
        """The space of a setting with ranges. One that a later flag of the same name overrides is none.

        Args:
            setting: words as they were typed.
            where: whose they are, for errors.

        Raises:
            ValueError: a range cannot be read.
        """
        words = _effective(joined(setting.words), where)
        return cls(setting.expression, tuple(words), tuple(ranges([setting.expression, *words], where)))

    def setting(self, values: Sequence[str]) -> Setting:
        """The words with a value for each range."""
        expression, *words = filled([self.expression, *self.words], values)
        return Setting(tuple(words), expression)


def _effective(words: Sequence[str], where: str) -> list[str]:
    """The words without flags that have a range and that stand again further on."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            parts.append([])
        parts[-1].append(word)
    names = ["".join(part[:1]).partition("=")[0].replace("-", "_") for part in parts]
    kept = [part for n, part in enumerate(parts) if names[n] not in names[n + 1 :] or not ranges(part, where)]
    return [word for part in kept for word in part]

"""A method in a cell with a value for each of its ranges."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hf_rat.experiments.experiment import Cell, Experiment, Setting
from hf_rat.experiments.method import Method
from hf_rat.experiments.spaces import Range, filled, joined, ranges
from hf_rat.experiments.words import value_of, without


@dataclass(frozen=True)
class Space:
    """What a method may try in a cell: the ranges of its entry, of the cell's flags and of those that all share.

    A range that a later flag of the same name overrides, as the command line has it, is none.

    Args:
        base, flags, own: the words of all runs, of the cell and of the method.
        expression: of the method.
        ranges: of all of them, in this order.
    """

    base: tuple[str, ...]
    flags: tuple[str, ...]
    expression: str
    own: tuple[str, ...]
    ranges: tuple[Range, ...]

    @classmethod
    def of(cls, experiment: Experiment, method: Method, cell: Cell) -> Space:
        """The space of a method in a cell.

        Raises:
            ValueError: a range cannot be read.
        """
        own = joined(method.flags)
        flags = _not_overridden(joined(cell.flags), own, "flags of a cell")
        base = _not_overridden(joined(experiment.base), [*flags, *own], "--")
        found = [*ranges(base, "--"), *ranges(flags, "flags of a cell")]
        found += ranges([method.expression, *own], f"--methods {method.entry!r}")
        return cls(tuple(base), tuple(flags), method.expression, tuple(own), tuple(found))

    def setting(self, values: Sequence[str]) -> Setting:
        """The words with a value for each range."""
        words = filled([*self.base, *self.flags, self.expression, *self.own], values)
        cell, own = len(self.base), len(self.base) + len(self.flags)
        entry = " ".join([words[own], *([shlex.join(words[own + 1 :])] if self.own else [])])
        return Setting(tuple(words[:cell]), tuple(words[cell:own]), Method(entry))


def _not_overridden(words: list[str], later: Sequence[str], where: str) -> list[str]:
    for flag in [word.partition("=")[0] for word in words if word.startswith("--")]:
        name = flag[2:].replace("-", "_")
        if value_of(later, name) is not None and ranges([str(value_of(words, name))], where):
            words = without(words, [name])
    return words

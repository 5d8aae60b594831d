"""One row of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from hf_rat.experiments.words import halves, slug


@dataclass(frozen=True)
class Method:
    """A regularizer, with flags of its own where it needs other ones than the rest.

    Args:
        entry: an expression for ``--reg``, optionally followed by flags: ``"rat(epsilon=0.5) --learning_rate 2e-5"``.
        label: what tables call it; None is `entry`.
    """

    entry: str
    label: str | None = None

    @property
    def expression(self) -> str:
        return halves(self.entry, "--methods")[0]

    @property
    def flags(self) -> list[str]:
        return halves(self.entry, "--methods")[1]

    @property
    def slug(self) -> str:
        """Name of its folder."""
        return slug(self.label or self.entry)

    @property
    def shown(self) -> str:
        return self.label or self.entry

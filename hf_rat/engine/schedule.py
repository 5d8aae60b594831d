"""When the parts of a regularizer are on in a run of known length, and what its steps cost."""

from __future__ import annotations

import warnings

from hf_rat.regularizers.schedules import has_shares, phases, schedules, timed
from hf_rat.regularizers.terms import Term


class Schedule:
    """A regularizer whose schedules are in steps.

    Args:
        regularizer: the term.
        total: optimizer steps of the whole run; None where nobody knows.

    Attributes:
        term: the same, with every share of the run as a whole number of steps: what is run.

    Raises:
        ValueError: `total` is no whole number above 0; the regularizer needs it; or is never on within the run.
    """

    def __init__(self, regularizer: Term, total: int | None) -> None:
        if total is not None and not (isinstance(total, int) and not isinstance(total, bool) and total > 0):
            raise ValueError(f"total_steps={total!r} must be the number of optimizer steps of the run, at least 1")
        self._regularizer, self.total = regularizer, total
        self.term = timed(regularizer, total)

    @property
    def phases(self) -> list[tuple[int | None, int]]:
        """(a step, how many steps cost what that one does); (None, 1) where nobody knows, or all are alike."""
        if self.total is None or not any(schedules(self.term)):
            return [(None, 1)]
        return [*phases(self.term, self.total)]

    def tell_of_another_length(self, before: int | None) -> None:
        """Warn, going on from a checkpoint, that shares are of another number of steps now.

        Args:
            before: of the run that made the checkpoint; None where it did not say.
        """
        if before is not None and before != self.total and has_shares(self._regularizer):
            warnings.warn(
                f"the checkpoint is of a run of {before} steps, and this one has {self.total}: the shares in "
                f"{self._regularizer!r} are other steps now",
                stacklevel=3,
            )

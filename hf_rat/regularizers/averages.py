"""Which average of the weights is evaluated and saved in the place of the weights; a trainer keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hf_rat.regularizers.algebra import Scaled, Term
from hf_rat.regularizers.schedules import inner_terms


@dataclass(frozen=True)
class Average(Term):
    """What is averaged. As a term it asks nothing of any pass.

    `ema(beta)`: a moving average, from the first step on. `swa(share)`: the mean of the weights after each step, once
    that share of the run is over. `nt_asgd(n)`: the same, once an evaluation is worse than the best of all before it
    but the last n: the non-monotonic trigger of Merity et al. 2018, n = 5. (Their text takes the best of the last n,
    their code of all but these. torch.optim.ASGD(t0=0, lambd=0), which the code goes on with, leaves the first of
    these weights out, and makes each step at the rate of the step before; here it is the rate of the step.)

    Args:
        kind: "ema", "swa" or "nt_asgd".
        number: of the average that an update keeps, in (0, 1); of the run that is over before the first update, in
            [0, 1); of evaluations.
        below: of "swa": nothing is averaged before the task loss has fallen below this share of what it was at first.
            An average lags behind weights that are still learning. None: it begins in any case.
    """

    kind: str
    number: float
    below: float | None = None

    def __repr__(self) -> str:
        return f"{self.kind}({self.number!r}{'' if self.below is None else f', below={self.below!r}'})"

    def parts(self, step: int) -> Iterator[tuple[float, Term]]:
        yield from ()

    @property
    def beta(self) -> float | None:
        return self.number if self.kind == "ema" else None

    def begin(self, steps: int, evaluations: Sequence[tuple[int, float]] = ()) -> int | None:
        """The optimizer steps of a run after which the weights are not yet averaged; None while that is not known.

        Args:
            steps: of the run.
            evaluations: (optimizer steps before it, what is better when it is less) of each so far.
        """
        if self.kind != "nt_asgd":
            return 0 if self.kind == "ema" else int(round(self.number * steps, 6))
        values = [value for _, value in evaluations]
        for before, (step, value) in enumerate(evaluations):
            if before > self.number and value > min(values[: before - int(self.number)]):
                return step
        return None


def average_of(regularizer: Term) -> Average | None:
    """The average of the weights that is a part of a regularizer.

    Raises:
        ValueError: there are several, or it is scaled.
    """
    found = list(_averages(regularizer, regularizer, 1.0))
    if len(found) > 1:
        raise ValueError(f"{regularizer!r} has {len(found)} averages of the weights, {found}; keep one")
    return found[0] if found else None


def _averages(term: Term, of: Term, factor: float) -> Iterator[Average]:
    if isinstance(term, Average):
        if factor != 1:
            raise ValueError(
                f"{of!r} scales {term!r} by {factor:g}; an average of the weights has no weight of its own"
            )
        yield term
    for part in inner_terms(term):
        yield from _averages(part, of, factor * term.factor if isinstance(term, Scaled) else factor)

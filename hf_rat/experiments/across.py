"""Methods over many data sets: what a method gains over the baseline when every data set counts.

What is estimated: the gain over all seeds that one could take, **on these very data sets**. A run's gain is its score
minus the baseline's with the same seed. It is told in points, and, because a point is much where seeds hardly matter
and little where they do, in deviations: divided by the data set's standard deviation over seeds (of every method, and
of those the median, which one method that fails now and then does not move).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]  # data set -> method -> seed -> score
GRID = tuple(float(tau) for tau in np.linspace(-3, 3, 25))
_RESAMPLES = 2000
_CUT = 0.25  # at each end, for the interquartile mean


@dataclass(frozen=True)
class Middle:
    """An interquartile mean (of the middle half of the runs) and its interval; None where a data set has one seed."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Gains:
    """What one method gains over the baseline.

    Args:
        points: interquartile mean of the runs' gains in the unit of the scores.
        deviations: the same in the data sets' standard deviations; None where one of them is zero or unknown.
        profile: for each tau of `Across.grid` the share of runs that gain more than tau deviations; None likewise.
        improvement: probability that a run of the method beats a run of the baseline, averaged over data sets.
    """

    points: Middle
    deviations: Middle | None
    profile: tuple[float, ...] | None
    improvement: float


@dataclass(frozen=True)
class Across:
    """Methods over data sets.

    Args:
        cells: the data sets.
        gains: method -> its gains, without the baseline.
        mean_ranks: method (and baseline) -> mean rank by mean score, 1 the best, ties shared.
        friedman_p: of the hypothesis that all methods are alike; None below three methods, or where all are equal.
        incomplete: method that is left out of all this -> the data sets that it lacks.
        units: data set -> its standard deviation over seeds, in points; 0 where no run varies or was repeated.
        grid: the taus of the profiles, in those units.
    """

    cells: tuple[str, ...]
    gains: dict[str, Gains]
    mean_ranks: dict[str, float]
    friedman_p: float | None
    incomplete: dict[str, tuple[str, ...]]
    units: dict[str, float]
    grid: tuple[float, ...]


def compare_across(
    scores: Scores, baseline: str, confidence: float = 0.95, grid: Sequence[float] = GRID, seed: int = 0
) -> Across:
    """Compare methods over data sets.

    Args:
        scores: data set -> method -> seed -> score; higher is better. Data sets may have different seeds, but a
            method's must meet the baseline's.
        baseline: the method that the others are compared with.
        confidence: of the intervals.
        grid: taus of the performance profiles, in the data sets' standard deviations.
        seed: of the bootstrap.

    Raises:
        ValueError: the baseline lacks a data set, or a method shares no seed with it.
    """
    cells = tuple(scores)
    lacking = [cell for cell in cells if baseline not in scores[cell]]
    if lacking or not cells:
        raise ValueError(f"the baseline {baseline!r} has no runs on {', '.join(lacking) or 'any data set'}")
    methods = list(dict.fromkeys(method for cell in cells for method in scores[cell]))
    incomplete = {m: tuple(c for c in cells if m not in scores[c]) for m in methods}
    incomplete = {m: gone for m, gone in incomplete.items() if gone}
    methods = [m for m in methods if m not in incomplete]
    units = {cell: float(np.median([_spread(scores[cell][m]) for m in methods])) for cell in cells}
    gains = {}
    for method in methods:
        if method == baseline:
            continue
        runs = [_gains(scores[cell][method], scores[cell][baseline], method, cell) for cell in cells]
        scaled = [run / units[cell] for run, cell in zip(runs, cells, strict=True)] if all(units.values()) else None
        gains[method] = Gains(
            points=_middle(runs, confidence, seed),
            deviations=_middle(scaled, confidence, seed) if scaled else None,
            profile=tuple(float((np.concatenate(scaled) > tau).mean()) for tau in grid) if scaled else None,
            improvement=float(np.mean([_improvement(scores[cell][method], scores[cell][baseline]) for cell in cells])),
        )
    means = np.array([[np.mean(list(scores[cell][m].values())) for m in methods] for cell in cells])
    means = np.round(means, 12)  # what is equal on paper shares a rank
    ranks = stats.rankdata(-means, axis=1).mean(axis=0).tolist()
    friedman = _friedman(means)
    return Across(cells, gains, dict(zip(methods, ranks, strict=True)), friedman, incomplete, units, tuple(grid))


def _gains(own: Mapping[int, float], baseline: Mapping[int, float], method: str, cell: str) -> np.ndarray:
    seeds = [seed for seed in own if seed in baseline]
    if not seeds:
        raise ValueError(f"{method!r} and the baseline share no seed on {cell}")
    return np.array([own[seed] - baseline[seed] for seed in seeds])


def _spread(scores: Mapping[int, float]) -> float:
    values = list(scores.values())
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.ptp(values) else 0.0


def _improvement(own: Mapping[int, float], baseline: Mapping[int, float]) -> float:
    """P(own > baseline) + P(own = baseline) / 2 of a run of each."""
    wins = stats.mannwhitneyu(list(own.values()), list(baseline.values())).statistic
    return float(wins) / (len(own) * len(baseline))


def _friedman(means: np.ndarray) -> float | None:
    """p of equal ranks, from (data sets, methods); None below three methods and where all are equal everywhere."""
    if means.shape[1] < 3 or not np.ptp(means, axis=1).any():
        return None
    return float(stats.friedmanchisquare(*means.T).pvalue)


def _middle(runs: Sequence[np.ndarray], confidence: float, seed: int) -> Middle:
    """Interquartile mean of the gains, by data set, and its interval.

    Its standard error comes from drawing the seeds of each data set again. Among n seeds the variance of what is drawn
    is too small by (n - 1) / n, so the runs are stretched about their mean. With few seeds quantiles of the drawn
    means would be too narrow still: Student's t, with Satterthwaite's degrees of freedom, which are few where most
    of the variance comes from few data sets.
    """
    mean = float(stats.trim_mean(np.concatenate(runs), _CUT))
    if min(map(len, runs)) == 1:
        return Middle(mean, None, None)
    generator = np.random.default_rng(seed)
    drawn = []
    for run in runs:
        n, middle = len(run), run.mean()
        chosen = run[generator.integers(n, size=(_RESAMPLES, n))]
        drawn.append(middle + (chosen - middle) * np.sqrt(n / (n - 1)))
    error = float(np.std(stats.trim_mean(np.concatenate(drawn, axis=1), _CUT, axis=1), ddof=1))
    parts = np.array([len(run) * run.var(ddof=1) for run in runs])
    if not parts.any():
        return Middle(mean, mean, mean)
    df = parts.sum() ** 2 / (parts**2 / [len(run) - 1 for run in runs]).sum()
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * error
    return Middle(mean, mean - half, mean + half)

"""Methods over many data sets: what a method gains over the baseline when every data set counts.

What is estimated: the gain over all seeds that one could take, **on these very data sets**. A run's gain is its score
minus the baseline's with the same seed, in points, and divided by the standard deviation of the baseline over seeds,
so that a point on a data set where seeds hardly matter counts more than one where they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]  # data set -> method -> seed -> score
GRID = tuple(float(tau) for tau in np.linspace(-3, 3, 25))  # SDs of the baseline


@dataclass(frozen=True)
class Middle:
    """An interquartile mean (of the middle half of the runs) and its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Gains:
    """What one method gains over the baseline.

    Args:
        points: interquartile mean of the runs' gains in the unit of the scores.
        deviations: the same in standard deviations of the baseline; None where the baseline's seeds do not vary.
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
        friedman_p: of the hypothesis that all methods are alike; None below three methods.
        incomplete: method that is left out of all this -> the data sets that it lacks.
        grid: the taus of the profiles, in standard deviations of the baseline.
    """

    cells: tuple[str, ...]
    gains: dict[str, Gains]
    mean_ranks: dict[str, float]
    friedman_p: float | None
    incomplete: dict[str, tuple[str, ...]]
    grid: tuple[float, ...]


def compare_across(
    scores: Scores,
    baseline: str,
    confidence: float = 0.95,
    grid: Sequence[float] = GRID,
    resamples: int = 2000,
    seed: int = 0,
) -> Across:
    """Compare methods over data sets.

    Args:
        scores: data set -> method -> seed -> score; higher is better. Data sets may have different seeds, but a
            method's must meet the baseline's.
        baseline: the method that the others are compared with.
        confidence: of the intervals.
        grid: taus of the performance profiles, in standard deviations of the baseline.
        resamples, seed: of the bootstrap.

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
    gains = {}
    for method in methods:
        if method == baseline:
            continue
        runs = [_gains(scores[cell][method], scores[cell][baseline], method, cell) for cell in cells]
        spreads = [_spread(scores[cell][baseline]) for cell in cells]
        scaled = [run / spread for run, spread in zip(runs, spreads, strict=True)] if all(spreads) else None
        gains[method] = Gains(
            _middle(runs, confidence, resamples, seed),
            _middle(scaled, confidence, resamples, seed) if scaled else None,
            tuple(float((np.concatenate(scaled) > tau).mean()) for tau in grid) if scaled else None,
            float(np.mean([_improvement(scores[cell][method], scores[cell][baseline]) for cell in cells])),
        )
    means = np.array([[np.mean(list(scores[cell][m].values())) for m in methods] for cell in cells])
    ranks = stats.rankdata(-means, axis=1)
    friedman = float(stats.friedmanchisquare(*means.T).pvalue) if len(methods) > 2 else None
    return Across(
        cells, gains, dict(zip(methods, ranks.mean(axis=0).tolist(), strict=True)), friedman, incomplete, tuple(grid)
    )


def _gains(own: Mapping[int, float], baseline: Mapping[int, float], method: str, cell: str) -> np.ndarray:
    seeds = [seed for seed in own if seed in baseline]
    if not seeds:
        raise ValueError(f"{method!r} and the baseline share no seed on {cell}")
    return np.array([own[seed] - baseline[seed] for seed in seeds])


def _spread(baseline: Mapping[int, float]) -> float:
    return float(np.std(list(baseline.values()), ddof=1)) if len(baseline) > 1 else 0.0


def _improvement(own: Mapping[int, float], baseline: Mapping[int, float]) -> float:
    """P(own > baseline) + P(own = baseline) / 2 of a run of each."""
    wins = stats.mannwhitneyu(list(own.values()), list(baseline.values())).statistic
    return float(wins) / (len(own) * len(baseline))


def _middle(runs: Sequence[np.ndarray], confidence: float, resamples: int, seed: int) -> Middle:
    """Interquartile mean of all runs; its interval resamples the seeds of each data set."""
    generator = np.random.default_rng(seed)
    drawn = np.concatenate([run[generator.integers(len(run), size=(resamples, len(run)))] for run in runs], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(stats.trim_mean(drawn, 0.25, axis=1), [tail, 1 - tail])
    return Middle(float(stats.trim_mean(np.concatenate(runs), 0.25)), float(low), float(high))

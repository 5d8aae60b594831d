"""A method against the baseline for test sets like this one: seeds and examples are both a sample.

What is estimated: by how much the method's score exceeds the baseline's, averaged over all seeds **and over all
examples that could have been drawn as these were**. It asks more than `hf_rat.experiments.paired`, which takes the
test set as it is, so its interval is never narrower.

Every seed met every example: the differences d[seed, example] are a two-way table with crossed random effects,
d = mean + seed + example + rest. The mean squares of a table of n seeds and m examples estimate the variance of its
mean in two parts: MS(seed) / nm, which is what the seeds' means show by themselves, and (MS(example) - MS(rest)) / nm,
what other examples would add; a negative part counts as none. Student's t has the degrees of freedom that
Satterthwaite's formula gives to the sum. How often such intervals hold the truth, and what else was tried, is in
results/verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class CrossedDifference:
    """A mean difference over seeds and examples.

    Args:
        mean: over seeds and examples, in the unit of the scores.
        low, high: its interval. None for one seed or one unit, from which it cannot be computed.
        seeds, units: how many seeds; how many examples, or groups or blocks of them.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    units: int


def crossed_difference(
    own: np.ndarray, baseline: np.ndarray, groups: Sequence[object] | None = None, confidence: float = 0.95
) -> CrossedDifference:
    """Compare two methods over the same seeds and examples.

    Args:
        own, baseline: (seeds, examples), scores of the method and of the baseline; higher is better. For a score that
            is no mean over examples, `pseudo_values` of each.
        groups: (examples,), which of them belong together (questions of one passage); groups are then what is drawn.
        confidence: of the interval.

    Raises:
        ValueError: shapes that do not fit, or scores that are not finite.
    """
    own, baseline = np.asarray(own, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if own.shape != baseline.shape or own.ndim != 2 or own.size == 0:
        raise ValueError(f"own is {own.shape} and baseline {baseline.shape}: both must be (seeds, examples)")
    if not np.isfinite(own).all() or not np.isfinite(baseline).all():
        raise ValueError(
            "own and baseline must be finite: an example whose score is nan or infinite has no difference"
        )
    table = own - baseline
    if groups is not None:
        table = _by_group(table, groups)
    (n, m), mean = table.shape, float(table.mean())
    if min(n, m) == 1:
        return CrossedDifference(mean, None, None, n, m)
    of_seeds, of_units, of_rest = mean_squares(table)
    more = max(of_units - of_rest, 0.0)
    tail, total = (1 + confidence) / 2, of_seeds + more
    half = float(stats.t.ppf(tail, n - 1)) * math.sqrt(
        of_seeds
    )  # seeds alone: with few of them t may exceed the sum's
    if more:
        df = total**2 / (of_seeds**2 / (n - 1) + more**2 / (m - 1))
        half = max(half, float(stats.t.ppf(tail, df)) * math.sqrt(total))
    half /= math.sqrt(n * m)
    return CrossedDifference(mean, mean - half, mean + half, n, m)


def mean_squares(table: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of rows, columns and rest of a two-way table (rows, columns) with one value a cell."""
    (n, m), mean = table.shape, table.mean()
    rows, columns = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    rest = table - mean - rows[:, None] - columns
    return (
        float(m * (rows**2).sum() / (n - 1)),
        float(n * (columns**2).sum() / (m - 1)),
        float((rest**2).sum() / ((n - 1) * (m - 1))),
    )


def _by_group(table: np.ndarray, groups: Sequence[object]) -> np.ndarray:
    """(seeds, examples) -> (seeds, groups): a group counts by its size, and each seed's mean stays what it was."""
    number = _numbered(groups, table.shape[1])
    count = int(number.max()) + 1
    means = table.mean(axis=1, keepdims=True)
    sums = np.stack([np.bincount(number, row, count) for row in table - means])
    return means + sums * (count / table.shape[1])


def _numbered(groups: Sequence[object], examples: int) -> np.ndarray:
    """(examples,), the groups as 0, 1, 2, ..."""
    if len(groups) != examples:
        raise ValueError(f"groups has {len(groups)} entries: give one for each of the {examples} examples")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def pseudo_values(
    score: Callable[[np.ndarray, np.ndarray], float],
    predicted: np.ndarray,
    expected: np.ndarray,
    groups: Sequence[object] | None = None,
    blocks: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """What each block of examples adds to a score that is no mean over examples (F1, Matthews, a correlation).

    The jackknife leaves out one block after the other; the pseudo-value of a block is the score of all plus
    (blocks - 1) times what the score loses without it (Dorfman, Berbaum and Metz 1992), moved so that their mean is
    the score. Of accuracy, with an example a block, they are the examples' own scores.

    Args:
        score: of predictions (some examples,) and labels (some examples,), a number.
        predicted: (seeds, examples).
        expected: (examples,).
        groups: (examples,), which of them belong together; a group is never divided.
        blocks: into how many the examples or groups are divided at random, if there are more of them.
        seed: of that division; the same for methods that are to be compared.

    Returns:
        float64 (seeds, blocks), for `crossed_difference`.

    Raises:
        ValueError: shapes that do not fit.
    """
    predicted, expected = np.asarray(predicted), np.asarray(expected)
    if predicted.ndim != 2 or predicted.shape[1] != len(expected):
        raise ValueError(f"predicted is {predicted.shape}: it must be (seeds, {len(expected)}), as many as expected")
    number = np.arange(len(expected)) if groups is None else _numbered(groups, len(expected))
    units = int(number.max()) + 1
    blocks = min(blocks, units)
    block = (np.random.default_rng(seed).permutation(units) % blocks if blocks < units else np.arange(units))[number]
    whole = np.array([[score(row, expected)] for row in predicted])
    values = np.empty((len(predicted), blocks))
    for one in range(blocks):
        rest = block != one
        without = np.array([score(row, expected[rest]) for row in predicted[:, rest]])
        values[:, one] = (whole[:, 0] - without) * rest.mean() * blocks
    return values + whole - values.mean(axis=1, keepdims=True)

"""A method against the baseline for test sets like this one: seeds and examples are both a sample.

What is estimated: by how much the method's score exceeds the baseline's, averaged over all seeds **and over all
examples that could have been drawn as these were**. It asks more than `hf_rat.experiments.paired`, which takes the
test set as it is, and its interval is wider. Every seed met every example, so the differences
d[seed, example] are a two-way table with crossed random effects: d = mean + seed + example + rest. The variance of the
grand mean comes from the table's mean squares, its degrees of freedom from Satterthwaite's formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class CrossedDifference:
    """A mean difference over seeds and examples. What cannot be computed is None.

    Args:
        mean: over seeds and examples, in the unit of the scores.
        low, high: its interval. None for one seed or one unit.
        error: standard error of the mean. None likewise.
        df: degrees of freedom of Student's t. None likewise, and where nothing varies.
        seeds, units: how many seeds; how many examples, or groups or blocks of them.
    """

    mean: float
    low: float | None
    high: float | None
    error: float | None
    df: float | None
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
    table = own - baseline
    if not np.isfinite(table).all():
        raise ValueError("own and baseline must be finite")
    if groups is not None:
        table = _by_group(table, groups)
    (n, m), mean = table.shape, float(table.mean())
    if min(n, m) == 1:
        return CrossedDifference(mean, None, None, None, None, n, m)
    seed, unit, rest = mean_squares(table)
    error = math.sqrt(max(seed + unit - rest, seed, unit) / (n * m))
    if error == 0:
        return CrossedDifference(mean, mean, mean, 0.0, None, n, m)
    df = (seed + unit - rest) ** 2 / (seed**2 / (n - 1) + unit**2 / (m - 1) + rest**2 / ((n - 1) * (m - 1)))
    df = max(df, n - 1)
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * error
    return CrossedDifference(mean, mean - half, mean + half, error, df, n, m)


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
    """(seeds, examples) -> (seeds, groups): each group counts by its size, and a seed's mean stays what it was."""
    if len(groups) != table.shape[1]:
        raise ValueError(f"groups has {len(groups)} entries: give one for each of the {table.shape[1]} examples")
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    means = table.mean(axis=1, keepdims=True)
    return means + (table - means) @ np.eye(len(names))[number] * (len(names) / table.shape[1])


def pseudo_values(
    score: Callable[[np.ndarray, np.ndarray], float],
    predicted: np.ndarray,
    expected: np.ndarray,
    blocks: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """What each block of examples adds to a score that is no mean over examples (F1, Matthews, a correlation).

    The jackknife leaves out one block after the other; the pseudo-value of a block is the score of all plus
    (blocks - 1) times what the score loses without it (Dorfman, Berbaum and Metz 1992), moved so that their mean is
    the score. Of accuracy, with an example a block, they are the examples' own scores.

    Args:
        score: of predictions (examples,) and labels (examples,), a number.
        predicted: (seeds, examples).
        expected: (examples,).
        blocks: into how many the examples are divided at random, if there are more of them.
        seed: of that division; the same for methods that are to be compared.

    Returns:
        float64 (seeds, blocks), for `crossed_difference`.
    """
    predicted, expected = np.asarray(predicted), np.asarray(expected)
    if predicted.ndim != 2 or predicted.shape[1] != len(expected):
        raise ValueError(f"predicted is {predicted.shape}: it must be (seeds, {len(expected)}), as expected is long")
    number = len(expected)
    parts = np.array_split(np.random.default_rng(seed).permutation(number), min(blocks, number))
    values = np.empty((len(predicted), len(parts)))
    for row, answers in zip(values, predicted, strict=True):
        whole = score(answers, expected)
        for index, part in enumerate(parts):
            without = score(np.delete(answers, part), np.delete(expected, part))
            row[index] = len(parts) * (1 - len(part) / number) * (whole - without)
        row += whole - row.mean()
    return values

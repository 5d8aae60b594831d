"""A method against the baseline, seed by seed, on one test set.

What is estimated: by how much the method's score exceeds the baseline's, averaged over all seeds that one could take,
**for this very test set**. Only the seeds are a sample; the examples are what they are. (For test sets like this one
see `hf_rat.experiments.crossed`.) Both methods ran with the same seeds, so that each seed gives one difference. Their
mean gets Student's t interval, and a permutation test that flips their signs.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

LEVEL, POWER = 0.05, 0.8  # of the test whose power is told
MOST_SEEDS = 1_000_000  # more than these are never "needed": the difference is as good as none
# The test is two-sided, but to call a gain a loss is no detection. (And where effects are large, the noncentral t
# distribution's other tail comes out as not a number.)
_ON_ITS_SIDE = {"alpha": LEVEL / 2, "alternative": "larger"}
EXACT_PAIRS = 14  # up to here every assignment of signs is counted, beyond it RESAMPLES random ones are
RESAMPLES = 19_999


@dataclass(frozen=True)
class Difference:
    """The paired difference of a method to the baseline. What cannot be computed is None.

    Args:
        mean: of the differences, in the unit of the scores.
        low, high: interval of the mean (Student's t). None for one pair.
        sd: standard deviation of the differences (n - 1); None for one pair.
        n: number of pairs.
        p: of the two-sided permutation test that flips signs; never below `smallest_p`.
        smallest_p: what the test can reach with n pairs, 2 / 2^n: below 6 pairs it cannot reach .05.
        wins, ties: pairs in which the method is better than the baseline, and as good.
        detectable: the smallest mean difference that n pairs with this sd detect with 80 % power at the two-sided
            level .05. None for one pair.
        seeds_needed: pairs that the observed difference would need for that power. None where it is zero, does not
            vary, or would need more than a million.
    """

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int
    p: float
    smallest_p: float
    wins: int
    ties: int
    detectable: float | None
    seeds_needed: int | None


def paired_difference(own: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Difference:
    """Compare the scores of two methods over the same seeds.

    Args:
        own, baseline: scores of the method and of the baseline, one a seed, in the same order of seeds; higher is
            better.
        confidence: of the interval.

    Raises:
        ValueError: no scores, different numbers of them, or one that is not finite.
    """
    pairs = np.array([own, baseline], dtype=np.float64) if len(own) == len(baseline) else None
    if pairs is None or pairs.size == 0 or pairs.ndim != 2:
        raise ValueError(f"own has {len(own)} scores and baseline {len(baseline)}: give as many, one for each seed")
    if not np.isfinite(pairs).all():
        raise ValueError("own and baseline must be finite: a run whose score is nan or infinite has no difference")
    differences = pairs[0] - pairs[1]
    # What is equal on paper (.8 - .7 and .3 - .2) is equal in whole grains, and their sums are exact.
    grains = np.rint(differences / (np.abs(pairs).max() * 1e-12 or 1))
    n, mean = len(differences), float(differences.mean())
    low = high = sd = detectable = needed = None
    if n > 1:
        sd = float(differences.std(ddof=1)) if np.ptp(grains) else 0.0
        half = half_width(sd, n, confidence)
        low, high = mean - half, mean + half
        detectable, needed = detectable_difference(sd, n), seeds_needed(mean, sd)
    wins, ties = int((grains > 0).sum()), int((grains == 0).sum())
    p, smallest = float(sign_flip_p(grains)), 2 / 2**n
    return Difference(mean, low, high, sd, n, p, smallest, wins, ties, detectable, needed)


def half_width(sd: float, n: int, confidence: float) -> float:
    """How far Student's interval reaches from the mean of n differences with standard deviation `sd`, to each side."""
    return float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)


def sign_flip_p(differences: np.ndarray) -> np.ndarray:
    """Two-sided p of the hypothesis that the differences are symmetric about zero, by flipping their signs.

    Args:
        differences: (..., n). Every assignment of signs is counted for n up to 14; beyond it 19,999 random ones are,
            the same in each call.

    Returns:
        float64 (...).
    """
    n = differences.shape[-1]
    if n == 1:
        return np.ones(differences.shape[:-1])
    result = stats.permutation_test(
        (differences,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**n if n <= EXACT_PAIRS else RESAMPLES,
        batch=max(1, 10_000_000 // differences.size),
        axis=-1,
        rng=np.random.default_rng(0),
    )
    return np.asarray(result.pvalue)


def detectable_difference(sd: float, n: int) -> float | None:
    """The smallest mean of n differences with standard deviation `sd` that a t test finds with 80 % power at .05."""
    if sd == 0:
        return 0.0
    return sd * float(TTestPower().solve_power(nobs=n, power=POWER, **_ON_ITS_SIDE))


def seeds_needed(mean: float, sd: float) -> int | None:
    """The fewest pairs with which a t test finds a mean difference with 80 % power at .05; None as in `Difference`."""
    if mean == 0 or sd == 0:
        return None
    effect = abs(mean) / sd

    def suffice(n: int) -> bool:
        return bool(TTestPower().power(effect, n, **_ON_ITS_SIDE) >= POWER)

    enough = 2
    while not suffice(enough):
        enough *= 2
        if enough > MOST_SEEDS:
            return None
    return bisect_left(range(enough), True, lo=max(2, enough // 2), key=suffice)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected by Holm's method for their number; None (no test was made) stays None and is not counted."""
    known = [p for p in p_values if p is not None]
    corrected = iter(multipletests(known, method="holm")[1].tolist() if known else [])
    return [None if p is None else next(corrected) for p in p_values]

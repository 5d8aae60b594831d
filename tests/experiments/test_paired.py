"""The statistics over seeds, each figure against a computation of its own."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from hf_rat.experiments.paired import detectable_difference, holm, paired_difference, seeds_needed, sign_flip_p


def scores(n, gain=0.01, seed=0):
    generator = np.random.default_rng(seed)
    baseline = generator.normal(0.8, 0.02, n)
    return (baseline + generator.normal(gain, 0.015, n)).tolist(), baseline.tolist()


def enumerated(own, baseline):
    """p by trying each assignment of signs."""
    differences = np.subtract(own, baseline)
    seen = abs(differences.mean())
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    return np.mean(np.abs(signs @ differences / len(differences)) >= seen - 1e-12)


def power(effect, n):
    """Of a two-sided t test at .05, to find the difference on its side, from the noncentral t distribution."""
    return stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, abs(effect) * math.sqrt(n))


@pytest.mark.parametrize("n", [2, 3, 5, 10, 20])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_the_interval_is_that_of_scipys_paired_t_test(n, confidence):
    own, baseline = scores(n)
    found = paired_difference(own, baseline, confidence)
    wanted = stats.ttest_rel(own, baseline).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)
    assert found.mean == pytest.approx(np.mean(own) - np.mean(baseline))
    assert found.sd == pytest.approx(np.std(np.subtract(own, baseline), ddof=1))
    assert found.n == n


@pytest.mark.parametrize("n", [2, 5, 6, 9, 12])
@pytest.mark.parametrize("gain", [0.0, 0.01, -0.03])
def test_p_counts_the_assignments_of_signs(n, gain):
    own, baseline = scores(n, gain)
    assert paired_difference(own, baseline).p == pytest.approx(enumerated(own, baseline), rel=1e-12)


def test_p_with_ties_that_only_rounding_errors_tell_apart():
    """Accuracies on few examples: .9 - .8 and .4 - .3 are the same difference on paper."""
    own, baseline = [0.9, 0.4, 0.2, 0.5, 0.7, 0.3], [0.8, 0.3, 0.3, 0.5, 0.6, 0.2]
    whole = [1, 1, -1, 0, 1, 1]  # tenths
    sums = [abs(np.dot(whole, signs)) for signs in itertools.product((1, -1), repeat=6)]
    found = paired_difference(own, baseline)
    assert found.p == np.mean([total >= 3 for total in sums])
    assert (found.wins, found.ties) == (4, 1)


def test_p_of_many_pairs_is_near_the_count_of_all():
    """Beyond what is counted: 16 pairs, whose 65,536 assignments numpy counts."""
    own, baseline = scores(16, 0.004, seed=3)
    wanted = enumerated(own, baseline)
    assert 0.005 < wanted < 0.5
    assert paired_difference(own, baseline).p == pytest.approx(wanted, abs=4 * math.sqrt(wanted / 19_999))
    assert paired_difference(own, baseline) == paired_difference(own, baseline)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 10])
def test_the_smallest_p_is_that_of_pairs_that_all_win(n):
    found = paired_difference(np.arange(1, n + 1), np.zeros(n))
    assert found.p == found.smallest_p == min(1, 2 / 2**n)
    assert (found.smallest_p <= 0.05) == (n >= 6)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 20])
def test_the_detectable_difference_has_80_per_cent_power(n):
    own, baseline = scores(n)
    found = paired_difference(own, baseline)
    effect = optimize.brentq(lambda effect: power(effect, n) - 0.8, 1e-3, 12)
    assert found.detectable == pytest.approx(effect * found.sd, rel=1e-4)


@pytest.mark.parametrize("effect", [11.0, 8.0, 3.0, 1.0, 0.5, 0.1, -0.5])
def test_the_seeds_needed_are_the_fewest_with_80_per_cent_power(effect):
    n = seeds_needed(effect * 0.02, 0.02)
    assert power(effect, n) >= 0.8 > power(effect, n - 1)


@pytest.mark.parametrize("effect", [12.0, 20.0, 50.0, 1e6])
def test_two_seeds_suffice_for_a_difference_that_dwarfs_its_spread(effect):
    assert seeds_needed(effect, 1.0) == 2


def test_more_seeds_than_anybody_runs_are_not_told():
    assert seeds_needed(1e-5, 1.0) is None
    assert seeds_needed(1e-2, 1.0) == pytest.approx((1.96 + 0.84) ** 2 / 1e-4, rel=0.01)


def test_one_pair_has_a_mean_and_no_more():
    found = paired_difference([0.9], [0.8])
    assert (found.mean, found.n, found.p, found.smallest_p) == (pytest.approx(0.1), 1, 1.0, 1.0)
    assert (found.low, found.high, found.sd, found.detectable, found.seeds_needed) == (None,) * 5
    assert (found.wins, found.ties) == (1, 0)


@pytest.mark.parametrize(("own", "p"), [([0.9, 0.4, 0.6], 0.25), ([0.8, 0.3, 0.5], 1.0)])
def test_differences_that_are_all_equal(own, p):
    found = paired_difference(own, [0.8, 0.3, 0.5])
    assert found.sd == 0
    assert found.low == found.mean == found.high
    assert (found.p, found.detectable, found.seeds_needed) == (p, 0, None)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_the_unit_of_the_scores_does_not_matter(size):
    own, baseline = scores(7)
    one, other = (
        paired_difference(own, baseline),
        paired_difference(np.multiply(own, size), np.multiply(baseline, size)),
    )
    assert (one.p, one.wins, one.ties, one.seeds_needed) == (other.p, other.wins, other.ties, other.seeds_needed)
    assert [other.low, other.high, other.detectable] == pytest.approx(
        [one.low * size, one.high * size, one.detectable * size]
    )


def test_laws():
    own, baseline = scores(9)
    found = paired_difference(own, baseline)
    reverse = paired_difference(baseline, own)
    assert (reverse.mean, reverse.low, reverse.high) == pytest.approx((-found.mean, -found.high, -found.low))
    assert (reverse.p, reverse.wins) == (found.p, 9 - found.wins - found.ties)
    order = np.random.default_rng(1).permutation(9)
    for other in (
        paired_difference(np.add(own, 3), np.add(baseline, 3)),
        paired_difference(np.array(own)[order], np.array(baseline)[order]),
    ):
        assert (other.p, other.wins) == (found.p, found.wins)
        assert (other.mean, other.low, other.high) == pytest.approx((found.mean, found.low, found.high))
    more = paired_difference(own * 4, baseline * 4)
    assert more.high - more.low < (found.high - found.low) / 2


@pytest.mark.parametrize(
    ("own", "baseline", "told"),
    [
        ([0.1, 0.2], [0.1], "own has 2 scores and baseline 1"),
        ([], [], "own has 0 scores"),
        ([0.1, math.nan], [0.1, 0.2], "must be finite"),
    ],
)
def test_scores_that_cannot_be_compared(own, baseline, told):
    with pytest.raises(ValueError, match=told):
        paired_difference(own, baseline)


def test_p_of_many_comparisons_at_once_is_that_of_each():
    differences = np.random.default_rng(0).normal(0.5, 1, (3, 2, 8))
    together = sign_flip_p(differences)
    assert together.shape == (3, 2)
    for index in np.ndindex(3, 2):
        assert together[index] == sign_flip_p(differences[index])


def by_definition(p_values):
    """Holm: the smallest times k, the next times k - 1, ..., never below the one before, at most 1."""
    order, corrected, highest = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = highest
    return corrected


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03], [0.5], [0.02, 0.02, 0.9, 0.001], [0.6, 0.7]])
def test_holm_by_its_definition(p_values):
    assert holm(p_values) == pytest.approx(by_definition(p_values))


def test_holm_does_not_count_tests_that_were_not_made():
    assert holm([None, 0.01, None, 0.04]) == [None, pytest.approx(0.02), None, pytest.approx(0.04)]
    assert holm([]) == []
    assert holm([None]) == [None]


def test_a_difference_without_spread_is_detectable_at_any_size():
    assert detectable_difference(0.0, 5) == 0.0

"""The statistics over data sets, each figure against a computation of its own."""

import math

import numpy as np
import pytest
from scipy import stats

from hf_rat.experiments.across import compare_across


def table(cells=4, n=5, methods=("plain", "fgm", "rat"), seed=0):
    """data set -> method -> seed -> score; rat gains, and data sets vary unequally."""
    generator = np.random.default_rng(seed)
    return {
        f"set {cell}": {
            name: {s: generator.normal(80 + (name == "rat"), 0.5 + cell) for s in range(1, n + 1)} for name in methods
        }
        for cell in range(cells)
    }


def gains_of(scores, method):
    return [
        [cell[method][s] - cell["plain"][s] for s in cell[method] if s in cell["plain"]] for cell in scores.values()
    ]


@pytest.mark.parametrize("n", [3, 4, 5])
def test_the_interquartile_mean_drops_a_quarter_at_each_end(n):
    scores = table(4, n)
    found = compare_across(scores, "plain").gains["rat"]
    gains = sorted(np.concatenate(gains_of(scores, "rat")))
    assert len(gains) == 4 * n
    assert found.points.mean == pytest.approx(np.mean(gains[n:-n]))


def test_deviations_are_points_over_the_median_sd_of_the_data_set():
    scores = table()
    across = compare_across(scores, "plain")
    units = {
        name: sorted(np.std(list(runs.values()), ddof=1) for runs in cell.values())[1] for name, cell in scores.items()
    }
    assert across.units == pytest.approx(units)
    scaled = [g / unit for gains, unit in zip(gains_of(scores, "rat"), units.values(), strict=True) for g in gains]
    found = across.gains["rat"]
    assert found.deviations.mean == pytest.approx(np.mean(sorted(scaled)[5:-5]))
    assert found.profile == pytest.approx([sum(g > tau for g in scaled) / 20 for tau in across.grid])


def test_the_profile_falls_from_one_to_zero():
    across = compare_across(table(), "plain", grid=(-100, -1, 0, 1, 100))
    profile = across.gains["rat"].profile
    assert (profile[0], profile[-1]) == (1, 0)
    assert list(profile) == sorted(profile, reverse=True)


def test_the_probability_of_improvement_counts_pairs():
    scores = {
        "one": {"plain": {1: 1.0, 2: 2.0, 3: 3.0}, "rat": {1: 2.0, 2: 3.5}},  # wins 1, ties 1; wins 3
        "two": {"plain": {1: 0.0, 2: 0.0}, "rat": {1: 1.0, 2: -1.0}},  # wins 2 of 4
    }
    assert compare_across(scores, "plain").gains["rat"].improvement == pytest.approx(((1.5 + 3) / 6 + 2 / 4) / 2)


def test_ranks_by_hand_with_a_tie():
    scores = {
        "one": {"plain": {1: 0.5}, "fgm": {1: 0.7}, "rat": {1: 0.6}},
        "two": {"plain": {1: 0.5}, "fgm": {1: 0.5}, "rat": {1: 0.6}},
        "three": {"plain": {1: 0.1, 2: 0.2, 3: 0.3}, "fgm": {1: 0.3, 2: 0.2, 3: 0.1}, "rat": {1: 0.0, 2: 0.0, 3: 0.0}},
    }
    found = compare_across(scores, "plain").mean_ranks
    assert found == pytest.approx({"plain": (3 + 2.5 + 1.5) / 3, "fgm": (1 + 2.5 + 1.5) / 3, "rat": (2 + 1 + 3) / 3})


def test_friedman_by_its_formula():
    scores = table(7)
    found = compare_across(scores, "plain")
    ranks = np.array(list(found.mean_ranks.values()))
    square = 12 * 7 / (3 * 4) * np.square(ranks - 2).sum()
    assert found.friedman_p == pytest.approx(math.exp(-square / 2))  # chi square with two degrees of freedom
    assert compare_across(table(7, methods=("plain", "rat")), "plain").friedman_p is None


def test_the_interval_of_many_normal_runs_is_students():
    """Where no run is far from the rest, the mean of the middle half has its known standard error."""
    generator = np.random.default_rng(0)
    n = 400
    scores = {
        str(cell): {"plain": dict.fromkeys(range(n), 0.0), "rat": dict(enumerate(generator.normal(1, 2, n)))}
        for cell in range(4)
    }
    found = compare_across(scores, "plain").gains["rat"].points
    edge = stats.norm.ppf(0.75)
    # Huber: the variance of a trimmed mean is that of values moved to the quartiles, over (1 - 2 x .25)^2.
    winsorised = 2 * (edge**2 * 0.25 + 0.25 - edge * stats.norm.pdf(edge))
    error = 2 * math.sqrt(winsorised / (4 * n)) / 0.5
    assert (found.high - found.low) / 2 == pytest.approx(stats.norm.ppf(0.975) * error, rel=0.1)
    assert found.mean == pytest.approx((found.low + found.high) / 2)


def test_laws():
    scores = table()
    found = compare_across(scores, "plain")
    assert found == compare_across(scores, "plain")
    shifted = {c: {m: {s: v + 7 for s, v in r.items()} for m, r in methods.items()} for c, methods in scores.items()}
    renamed = {c: {m: {s + 100: v for s, v in r.items()} for m, r in methods.items()} for c, methods in scores.items()}
    turned = {c: {m: {s: -v for s, v in r.items()} for m, r in methods.items()} for c, methods in scores.items()}
    for other in (shifted, renamed):
        again = compare_across(other, "plain").gains["rat"]
        assert (again.points.mean, again.points.low, again.improvement) == pytest.approx(
            (found.gains["rat"].points.mean, found.gains["rat"].points.low, found.gains["rat"].improvement)
        )
    mirror = compare_across(turned, "plain")
    assert mirror.gains["rat"].points.mean == pytest.approx(-found.gains["rat"].points.mean)
    assert mirror.gains["rat"].points.low == pytest.approx(-found.gains["rat"].points.high)
    assert mirror.gains["rat"].improvement == pytest.approx(1 - found.gains["rat"].improvement)
    assert mirror.mean_ranks == pytest.approx({m: 4 - rank for m, rank in found.mean_ranks.items()})
    more = compare_across(table(n=80), "plain").gains["rat"].points
    assert more.high - more.low < found.gains["rat"].points.high - found.gains["rat"].points.low


def test_one_method_that_fails_now_and_then_does_not_move_the_unit():
    scores = table()
    calm = compare_across(scores, "plain").units
    for cell in scores.values():
        cell["wild"] = {s: 50.0 + 40 * (s % 2) for s in range(1, 6)}
        cell["calm"] = dict.fromkeys(range(1, 6), 80.0)
    assert compare_across(scores, "plain").units == pytest.approx(calm)


def test_data_sets_with_one_seed_have_no_interval_and_no_unit():
    found = compare_across(table(4, 1), "plain")
    gains = found.gains["rat"]
    assert gains.points.low is gains.points.high is gains.deviations is gains.profile is None
    assert set(found.units.values()) == {0.0}


def test_a_method_that_lacks_a_data_set_is_named_and_left_out():
    scores = table()
    del scores["set 2"]["fgm"]
    found = compare_across(scores, "plain")
    assert found.incomplete == {"fgm": ("set 2",)}
    assert set(found.mean_ranks) == {"plain", "rat"}
    assert set(found.gains) == {"rat"}


def test_only_seeds_of_both_are_paired():
    scores = table(2, 2)
    scores["set 0"]["rat"] = {2: 90.0, 9: 0.0}
    gain = 90 - scores["set 0"]["plain"][2]
    others = gains_of(scores, "rat")[1]
    assert compare_across(scores, "plain").gains["rat"].points.mean == pytest.approx(np.mean([gain, *others]))


def test_methods_that_are_all_alike():
    scores = {str(c): {m: {1: 0.5, 2: 0.5} for m in ("plain", "fgm", "rat")} for c in range(4)}
    found = compare_across(scores, "plain")
    assert found.friedman_p is None
    assert found.gains["rat"].points.low == found.gains["rat"].points.high == 0
    assert found.gains["rat"].improvement == 0.5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda scores: scores["set 1"].pop("plain"), "'plain' has no runs on set 1"),
        (lambda scores: scores.clear(), "no runs on any data set"),
        (lambda scores: scores["set 1"].update(rat={77: 1.0}), "'rat' and the baseline share no seed on set 1"),
    ],
)
def test_tables_that_cannot_be_compared(change, told):
    scores = table()
    change(scores)
    with pytest.raises(ValueError, match=told):
        compare_across(scores, "plain")

"""The interval over seeds and examples, and pseudo-values, each against a computation of its own."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from hf_rat.experiments.crossed import crossed_difference, mean_squares, pseudo_values
from hf_rat.experiments.paired import paired_difference


def tables(n=6, m=40, of_seeds=0.1, of_examples=0.5, seed=0):
    """Scores of two methods (seeds, examples) whose difference has effects of both."""
    generator = np.random.default_rng(seed)
    baseline = generator.normal(0, 1, (n, m))
    effects = generator.normal(0, of_seeds, (n, 1)) + generator.normal(0, of_examples, m)
    return baseline + 0.2 + effects + generator.normal(0, 0.5, (n, m)), baseline


def by_anova(table):
    """Mean squares of rows, columns and rest, by statsmodels."""
    rows, columns = np.indices(table.shape)
    frame = pd.DataFrame({"d": table.ravel(), "row": rows.ravel(), "column": columns.ravel()})
    squares = anova_lm(ols("d ~ C(row) + C(column)", frame).fit())
    return (squares["sum_sq"] / squares["df"]).tolist()


def edges(found):
    return found.low, found.high


def test_mean_squares_are_those_of_statsmodels():
    own, baseline = tables(4, 7)
    assert mean_squares(own - baseline) == pytest.approx(by_anova(own - baseline), rel=1e-9)


def test_the_interval_follows_from_the_mean_squares():
    n, m = 4, 7
    own, baseline = tables(n, m)
    seeds, examples, rest = by_anova(own - baseline)
    assert examples > rest
    of_seeds, of_examples = seeds / (n * m), (examples - rest) / (n * m)
    df = (of_seeds + of_examples) ** 2 / (of_seeds**2 / (n - 1) + of_examples**2 / (m - 1))
    half = stats.t.ppf(0.975, df) * math.sqrt(of_seeds + of_examples)
    mean = np.mean(own - baseline)
    assert half > stats.t.ppf(0.975, n - 1) * math.sqrt(of_seeds)
    assert edges(crossed_difference(own, baseline)) == pytest.approx((mean - half, mean + half))


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_without_a_variance_of_examples_it_is_the_interval_over_seeds(confidence):
    """The rest is larger than what the examples show: they add nothing, and nothing is taken away."""
    n, m = 5, 30
    table = np.random.default_rng(2).normal(0, 1, (n, m))
    table -= table.mean(axis=0)
    table += np.linspace(0, 1, n)[:, None]
    assert mean_squares(table)[1] < mean_squares(table)[2]
    found = crossed_difference(table, np.zeros((n, m)), confidence=confidence)
    wanted = paired_difference(table.mean(axis=1), np.zeros(n), confidence)
    assert edges(found) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("of_examples", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("n", [2, 5])
def test_it_is_never_narrower_than_the_interval_over_seeds(n, of_examples, seed):
    own, baseline = tables(n, 30, 0.1, of_examples, seed)
    found = crossed_difference(own, baseline)
    here = paired_difference(own.mean(axis=1), baseline.mean(axis=1))
    assert found.mean == pytest.approx(here.mean)
    assert found.high - found.low >= (here.high - here.low) * (1 - 1e-9)


def test_examples_that_all_seeds_answer_alike_give_the_interval_over_examples():
    """Nothing depends on the seed: n seeds tell no more than one, and t over examples is what remains."""
    differences = np.random.default_rng(0).normal(0.3, 1, 25)
    found = crossed_difference(np.tile(differences, (4, 1)), np.zeros((4, 25)))
    wanted = stats.ttest_1samp(differences, 0).confidence_interval()
    assert edges(found) == pytest.approx((wanted.low, wanted.high))


def test_groups_of_equal_size_are_units():
    own, baseline = tables(5, 60)
    groups = [f"passage {index % 20}" for index in range(60)]
    means = [side.reshape(5, 3, 20).mean(axis=1) for side in (own, baseline)]
    found, wanted = crossed_difference(own, baseline, groups), crossed_difference(*means)
    assert (found.seeds, found.units) == (5, 20)
    assert (found.mean, *edges(found)) == pytest.approx((wanted.mean, *edges(wanted)))


def test_groups_of_one_change_nothing():
    own, baseline = tables()
    assert edges(crossed_difference(own, baseline, range(40))) == pytest.approx(
        edges(crossed_difference(own, baseline))
    )


def test_groups_of_unequal_size_have_the_variance_of_a_ratio():
    """Nothing depends on the seed: the survey statistician's variance of a mean over clusters (Cochran, ch. 11)."""
    generator = np.random.default_rng(5)
    sizes = generator.integers(1, 7, 30)
    groups = np.repeat(np.arange(30), sizes)
    differences = generator.normal(0.2, 1, 30)[groups] + generator.normal(0, 0.3, len(groups))
    mean = differences.mean()
    residuals = [(differences[groups == group] - mean).sum() for group in range(30)]
    variance = 30 / 29 * np.square(residuals).sum() / len(groups) ** 2
    half = stats.t.ppf(0.975, 29) * math.sqrt(variance)
    found = crossed_difference(np.tile(differences, (3, 1)), np.zeros((3, len(groups))), groups)
    assert edges(found) == pytest.approx((mean - half, mean + half))
    assert half > 1.2 * (crossed_difference(np.tile(differences, (3, 1)), np.zeros((3, len(groups)))).high - mean)


def test_laws():
    own, baseline = tables()
    found = crossed_difference(own, baseline)
    reverse = crossed_difference(baseline, own)
    assert (reverse.mean, *edges(reverse)) == pytest.approx((-found.mean, -found.high, -found.low))
    generator = np.random.default_rng(1)
    seeds, examples = generator.permutation(6), generator.permutation(40)
    for other in (
        crossed_difference(own + 3, baseline + 3),
        crossed_difference(own + np.arange(40), baseline + np.arange(40)),  # examples that are hard for both
        crossed_difference(own[seeds], baseline[seeds]),
        crossed_difference(own[:, examples], baseline[:, examples]),
    ):
        assert (other.mean, *edges(other)) == pytest.approx((found.mean, *edges(found)))
    small, large = tables(5, 50, 0.3), tables(80, 50, 0.3)
    narrow, wide = crossed_difference(*large), crossed_difference(*small)
    assert narrow.high - narrow.low < wide.high - wide.low


@pytest.mark.parametrize("shape", [(1, 10), (5, 1), (1, 1)])
def test_one_seed_or_one_example_has_a_mean_and_no_interval(shape):
    found = crossed_difference(np.ones(shape), np.zeros(shape))
    assert (found.mean, found.low, found.high, found.seeds, found.units) == (1.0, None, None, *shape)


def test_equal_answers_differ_by_nothing():
    own, _ = tables()
    assert edges(crossed_difference(own, own)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("own", "baseline", "groups", "told"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), None, r"own is \(2, 3\) and baseline \(2, 4\)"),
        (np.zeros(3), np.zeros(3), None, "both must be"),
        (np.full((2, 3), np.nan), np.zeros((2, 3)), None, "must be finite"),
        (np.full((2, 3), np.inf), np.zeros((2, 3)), None, "must be finite"),
        (np.zeros((2, 3)), np.ones((2, 3)), [1, 2], "groups has 2 entries: give one for each of the 3"),
    ],
)
def test_tables_that_cannot_be_compared(own, baseline, groups, told):
    with pytest.raises(ValueError, match=told):
        crossed_difference(own, baseline, groups)


# -- pseudo-values ---------------------------------------------------------------------------------------------------


def answers(n=3, m=60, seed=0):
    generator = np.random.default_rng(seed)
    expected = (generator.random(m) < 0.6).astype(int)
    return np.where(generator.random((n, m)) < 0.8, expected, 1 - expected), expected


def accuracy(predicted, expected):
    return (predicted == expected).mean()


def f1(predicted, expected):
    return metrics.f1_score(expected, predicted)


def test_those_of_accuracy_are_the_examples_scores():
    predicted, expected = answers()
    assert pseudo_values(accuracy, predicted, expected) == pytest.approx(
        (predicted == expected).astype(float), abs=1e-12
    )


def test_those_of_accuracy_by_groups_give_the_interval_by_groups():
    (own, expected), (baseline, _) = answers(5), answers(5, seed=0)
    baseline = np.where(np.random.default_rng(9).random(baseline.shape) < 0.9, baseline, 1 - baseline)
    groups = np.repeat(np.arange(20), 3)
    wanted = crossed_difference(own == expected, baseline == expected, groups)
    found = crossed_difference(*(pseudo_values(accuracy, side, expected, groups) for side in (own, baseline)))
    assert found.units == wanted.units == 20
    assert (found.mean, *edges(found)) == pytest.approx((wanted.mean, *edges(wanted)))


def test_those_of_f1_are_the_jackknifes():
    """One example a block: m theta - (m - 1) theta without it, moved to have theta as their mean."""
    predicted, expected = answers(2, 30)
    found = pseudo_values(f1, predicted, expected)
    for row, values in zip(predicted, found, strict=True):
        whole = f1(row, expected)
        jackknife = [30 * whole - 29 * f1(np.delete(row, i), np.delete(expected, i)) for i in range(30)]
        assert values == pytest.approx(np.array(jackknife) - np.mean(jackknife) + whole)


@pytest.mark.parametrize("blocks", [7, 29])
@pytest.mark.parametrize("score", [accuracy, f1, lambda p, e: metrics.matthews_corrcoef(e, p)])
def test_their_mean_is_the_score(score, blocks):
    predicted, expected = answers(m=30)
    values = pseudo_values(score, predicted, expected, blocks=blocks)
    assert values.shape == (3, blocks)
    assert values.mean(axis=1) == pytest.approx([score(row, expected) for row in predicted])


def test_the_jackknife_of_a_correlation_has_its_standard_error():
    """Of many pairs of normals the correlation r has the standard error (1 - r^2) / sqrt(m)."""
    generator = np.random.default_rng(0)
    expected = generator.normal(size=4000)
    predicted = 0.6 * expected + 0.8 * generator.normal(size=(2, 4000))
    values = pseudo_values(lambda p, e: float(np.corrcoef(p, e)[0, 1]), predicted, expected)
    errors = values.std(axis=1, ddof=1) / math.sqrt(200)
    assert errors == pytest.approx((1 - 0.36) / math.sqrt(4000), rel=0.2)


def test_blocks_are_the_same_for_both_methods_and_each_call():
    expected = np.zeros(60)
    left_out = []

    def remembers(predicted, expected):
        left_out.append(tuple(predicted))
        return 0.0

    pseudo_values(remembers, np.arange(60)[None], expected, blocks=8)
    first, left_out = left_out[1:], []
    pseudo_values(remembers, np.arange(60)[None], expected, blocks=8)
    assert first == left_out[1:]
    gone = [set(range(60)) - set(rest) for rest in first]
    assert sorted(map(len, gone)) == [7, 7, 7, 7, 8, 8, 8, 8]
    assert set.union(*gone) == set(range(60))
    assert gone[0] != set(range(8)), "the order of the file is not that of the blocks"


@pytest.mark.parametrize("groups", [None, [1, 2]])
def test_predictions_that_do_not_fit(groups):
    predicted, expected = answers()
    with pytest.raises(ValueError, match="60"):
        pseudo_values(accuracy, predicted[:, :-1] if groups is None else predicted, expected, groups)

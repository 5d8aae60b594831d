"""The scores against their definitions, written out in plain Python."""

import math
import random

import numpy as np
import pytest

from hf_rat.data.metrics import METRICS, scores_of
from hf_rat.data.tasks import GLUE, TEXTS


def _counts(predictions, references):
    pairs = list(zip(predictions, references, strict=True))
    return [pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]


def _f1(predictions, references):
    hit, false, missed, _ = _counts(predictions, references)
    return 2 * hit / (2 * hit + false + missed)


def _matthews(predictions, references):
    hit, false, missed, right = _counts(predictions, references)
    bottom = math.sqrt((hit + false) * (hit + missed) * (right + false) * (right + missed))
    return (hit * right - false * missed) / bottom


def _pearson(xs, ys):
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    top = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return top / math.sqrt(sum((x - mean_x) ** 2 for x in xs) * sum((y - mean_y) ** 2 for y in ys))


def _ranks(xs):
    """Mean rank among equals."""
    return [sum(y < x for y in xs) + (sum(y == x for y in xs) + 1) / 2 for x in xs]


@pytest.fixture
def classes():
    rng = random.Random(3)
    references = [rng.randint(0, 1) for _ in range(101)]
    return [r if rng.random() < 0.7 else 1 - r for r in references], references


@pytest.fixture
def numbers():
    rng = random.Random(4)
    references = [rng.choice([0.0, 1.0, 2.5, 3.8, 5.0]) for _ in range(60)]  # with ties
    return [r + rng.gauss(0, 1) for r in references], references


def test_classification_scores_equal_their_definitions(classes):
    predictions, references = classes
    right = sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)
    expected = {"accuracy": right, "f1": _f1(*classes), "matthews_correlation": _matthews(*classes)}
    for name, value in expected.items():
        assert METRICS[name](np.array(predictions), np.array(references)) == pytest.approx(value, abs=1e-12)


def test_correlations_equal_their_definitions(numbers):
    predictions, references = map(np.array, numbers)
    assert METRICS["pearson"](predictions, references) == pytest.approx(_pearson(*numbers), abs=1e-12)
    ranked = _pearson(_ranks(numbers[0]), _ranks(numbers[1]))
    assert METRICS["spearmanr"](predictions, references) == pytest.approx(ranked, abs=1e-12)


def test_f1_is_that_of_class_one():
    predictions, references = np.array([1, 1, 0, 0, 0]), np.array([1, 0, 0, 0, 0])
    assert METRICS["f1"](predictions, references) == pytest.approx(2 / 3)
    assert METRICS["f1"](1 - predictions, 1 - references) == pytest.approx(6 / 7)


def test_a_constant_prediction_has_no_matthews_correlation():
    assert METRICS["matthews_correlation"](np.ones(4), np.array([1, 0, 1, 0])) == 0.0


@pytest.mark.parametrize("task", GLUE, ids=lambda task: task.name)
def test_the_scores_of_a_task_have_the_names_of_the_official_ones(task, classes, numbers):
    official = {
        "cola": {"matthews_correlation"},
        "ax": {"matthews_correlation"},
        "stsb": {"pearson", "spearmanr", "combined_score"},
        "mrpc": {"accuracy", "f1", "combined_score"},
        "qqp": {"accuracy", "f1", "combined_score"},
    }.get(task.name, {"accuracy"})
    predictions, references = numbers if task.regression else classes
    scores = scores_of(task.metrics, np.asarray(predictions), np.asarray(references))
    assert set(scores) == official
    if "combined_score" in scores:
        assert scores["combined_score"] == pytest.approx(sum(scores[name] for name in task.metrics) / 2)


def test_the_mean_f1_of_positive_and_negative_by_its_definition():
    """SemEval-2015 task 10 B: F1 of each of the two, over all tweets; neutral ones count where they are confused."""
    rng = random.Random(3)
    for weights in ((3, 5, 4), (0, 1, 0), (1, 0, 1)):  # also where a class never occurs
        predictions, references = (np.array(rng.choices((0, 1, 2), weights, k=50)) for _ in range(2))
        both = []
        for sign in (0, 2):
            right = sum((predictions == sign) & (references == sign))
            answered, there = sum(predictions == sign), sum(references == sign)
            precision, recall = (right / count if count else 0.0 for count in (answered, there))
            both.append(2 * precision * recall / (precision + recall) if right else 0.0)
        assert METRICS["polar_f1"](predictions, references) == pytest.approx(sum(both) / 2)
    (task,) = [task for task in TEXTS if "polar_f1" in task.metrics]
    assert (task.labels[0], task.labels[2]) == ("negative", "positive")


def test_neutral_tweets_weigh_by_how_they_are_confused():
    """By hand: negative 1 of 2 answered right and 1 of 1 found, positive 1 of 1 and 1 of 2: F1 2/3 each."""
    assert METRICS["polar_f1"](np.array([0, 0, 2, 1]), np.array([0, 1, 2, 2])) == pytest.approx(2 / 3)

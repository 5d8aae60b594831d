"""Scores without a network: plain functions on scikit-learn and SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of predicted classes that are right, 0 to 1."""
    return float((predictions == references).mean())


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1 in a task of two classes, 0 to 1."""
    return float(sklearn_metrics.f1_score(references, predictions))


def polar_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean F1 of the classes negative (0) and positive (2), neutral (1) between them: SemEval's measure."""
    return float(sklearn_metrics.f1_score(references, predictions, labels=[0, 2], average="macro", zero_division=0))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews correlation coefficient, -1 to 1; 0 when one side is constant."""
    return float(sklearn_metrics.matthews_corrcoef(references, predictions))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson correlation of numbers, -1 to 1; not a number when one side is constant."""
    return float(stats.pearsonr(predictions, references).statistic)


def spearmanr(predictions: np.ndarray, references: np.ndarray) -> float:
    """Spearman rank correlation of numbers, -1 to 1; not a number when one side is constant."""
    return float(stats.spearmanr(predictions, references).statistic)


def mse(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean squared error, in squared units of the label."""
    return float(np.square(predictions - references).mean())


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    function.__name__: function for function in (accuracy, f1, polar_f1, matthews_correlation, pearson, spearmanr, mse)
}


def perplexity(loss: float) -> float:
    """exp(mean loss per token); infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_character(loss: float) -> float:
    """Mean loss per character in bits."""
    return loss / math.log(2)


OF_LOSS: dict[str, Callable[[float], float]] = {
    function.__name__: function for function in (perplexity, bits_per_character)
}
"""Scores of a language model, by the mean loss per token in nats."""

LOWER_IS_BETTER = ("loss", "mse", *OF_LOSS)


def scores_of(names: Sequence[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The scores of one task; of several, their mean too, as "combined_score".

    Args:
        names: keys of `METRICS`, in the order of the result.
        predictions, references: class numbers, or numbers, (rows,).
    """
    scores = {name: METRICS[name](predictions, references) for name in names}
    if len(scores) > 1:
        scores["combined_score"] = float(np.mean(list(scores.values())))
    return scores

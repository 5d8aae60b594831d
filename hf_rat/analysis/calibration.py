"""Whether a classifier is as sure as it is right: before and after one temperature (Guo et al. 2017).

The temperature T divides the logits. It is fitted to some of the rows, by their negative log-likelihood, and all is
measured on the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rat.analysis.logits import Batches, ask

BOUNDS = (0.01, 100.0)
"""Between which the temperature is sought: rows that are all right ask for 0, a model without a clue for infinity."""

LEAST = 10
"""Rows that a temperature is fitted to, and rows that are measured, at least."""


@dataclass(frozen=True)
class Bin:
    """The rows whose confidence, the probability of the predicted class, is in [low, high), in the last one [low, 1].

    Args:
        low, high: in [0, 1].
        rows: how many.
        confidence: their mean, None without rows.
        accuracy: share of them that are right, None without rows.
    """

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Reliability:
    """How well probabilities fit what is right.

    Args:
        accuracy: 0 to 1.
        confidence: mean probability of the predicted class.
        nll: mean negative log-likelihood of the label, in nats.
        brier: mean over the rows of the sum over the classes of (probability - 1 if it is the label) squared, 0 to 2,
            for two classes too.
        ece: expected calibration error: mean over the rows of |accuracy - confidence| of their bin.
        bins: of equal width, for the diagram.
    """

    accuracy: float
    confidence: float
    nll: float
    brier: float
    ece: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Calibration:
    """Of one model.

    Args:
        temperature: that the logits are divided by.
        fitted, measured: rows of the two parts.
        seed: that split them.
        before, after: the reliability of the measured rows without and with the temperature.
    """

    temperature: float
    fitted: int
    measured: int
    seed: int
    before: Reliability
    after: Reliability


def calibrate(
    model: nn.Module, batches: Batches, share: float = 0.5, seed: int = 0, bins: int = 15, asked: str = "calibration"
) -> Calibration:
    """Fit one temperature on a share of the rows, and measure the others without and with it.

    Args:
        model: a classifier, in whatever mode; it stays as it is.
        batches: its inputs with labels.
        share: of the rows to which the temperature is fitted, drawn by `seed`.
        seed: the same rows for every model.
        bins: of equal width.
        asked: the beginning of errors.

    Raises:
        ValueError: the model is a regression, or a part has fewer than `LEAST` rows.
    """
    said = ask(model, batches)
    if said.regression:
        raise ValueError(f"{asked}: {type(model).__name__} is a regression, and only probabilities can be calibrated")
    fit, rest = split_rows(len(said.labels), share, seed, asked)
    temperature = fit_temperature(said.logits[fit], said.labels[fit])
    logits, labels = said.logits[rest], said.labels[rest]
    before, after = (measure_reliability(logits / by, labels, bins) for by in (1.0, temperature))
    return Calibration(temperature, len(fit), len(rest), seed, before, after)


def split_rows(count: int, share: float, seed: int, asked: str = "calibration") -> tuple[Tensor, Tensor]:
    """The rows to fit to and those to measure, int64, each ascending; the same for the same arguments.

    Raises:
        ValueError: one of the two has fewer than `LEAST` rows.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    first = round(share * count)
    if min(first, count - first) < LEAST:
        raise ValueError(
            f"{asked}: {count} rows split into {first} to fit the temperature to and {count - first} to measure; at "
            f"least {LEAST} of each are needed"
        )
    return order[:first].sort().values, order[first:].sort().values


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature within `BOUNDS` under which the labels are likeliest; never one that is worse than none.

    The negative log-likelihood is convex in 1 / T, so that there is one minimum.

    Args:
        logits: float64 (rows, classes).
        labels: int64 (rows,).
    """

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), labels))

    found = minimize_scalar(loss, bounds=tuple(np.log(BOUNDS)), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def measure_reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """How well the softmax of logits fits the labels.

    Args:
        logits: float64 (rows, classes).
        labels: int64 (rows,).
        bins: of equal width.

    Raises:
        ValueError: torchmetrics is not there.
    """
    try:
        from torchmetrics.functional.classification import multiclass_calibration_error
    except ImportError as error:
        raise ValueError("calibration needs torchmetrics: pip install 'hf-rat[analysis]'") from error
    classes = logits.shape[-1]
    probabilities = logits.softmax(-1)
    confidence, predicted = probabilities.max(-1)
    right = predicted == labels
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    own = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, bins - 1)
    found = []
    for number in range(bins):
        inside = own == number
        rows = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].double().mean())) if rows else (None, None)
        found.append(Bin(float(edges[number]), float(edges[number + 1]), rows, *means))
    # torchmetrics has a bin of its own for a confidence of 1.
    ece = multiclass_calibration_error(probabilities.clamp(max=1 - 1e-7), labels, classes, n_bins=bins)
    return Reliability(
        accuracy=float(right.double().mean()),
        confidence=float(confidence.mean()),
        nll=float(F.cross_entropy(logits, labels)),
        brier=float(brier_score_loss(labels, probabilities, labels=range(classes), scale_by_half=False)),
        ece=float(ece),
        bins=tuple(found),
    )

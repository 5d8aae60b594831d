"""Calibration: ECE, Brier score and likelihood by hand, and the laws of a temperature."""

import math

import pytest
import torch
from torch import nn

from hf_rat.analysis.calibration import (
    BOUNDS,
    calibrate,
    fit_temperature,
    measure_reliability,
    split_rows,
)
from hf_rat.analysis.gap_pictures import reliability_diagram


def by_hand(logits, labels, bins):
    """(ece, brier, nll) in plain Python, row by row."""
    inside = [[] for _ in range(bins)]
    brier = nll = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(z - max(row)) for z in row)
        p = [math.exp(z - max(row)) / total for z in row]
        brier += sum((value - (number == label)) ** 2 for number, value in enumerate(p))
        nll -= math.log(p[label])
        best = max(range(len(p)), key=p.__getitem__)
        inside[min(int(p[best] * bins), bins - 1)].append((p[best], best == label))
    ece = 0.0
    for rows in filter(None, inside):
        sure, right = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        ece += len(rows) * abs(sure - right)
    return tuple(value / len(labels) for value in (ece, brier, nll))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("scale", [0.3, 3.0, 300.0])  # the last: confidences that are exactly 1
def test_the_measures_by_hand(classes, scale):
    torch.manual_seed(classes)
    logits, labels = scale * torch.randn(200, classes, dtype=torch.float64), torch.randint(classes, (200,))
    found = measure_reliability(logits, labels, bins=10)
    best = logits.argmax(-1)
    ece, brier, _ = by_hand(logits, labels, 10) if scale < 100 else (None, None, None)
    assert found.accuracy == pytest.approx(float((best == labels).double().mean()))
    assert found.ece == pytest.approx(
        sum(part.rows * abs(part.confidence - part.accuracy) for part in found.bins if part.rows) / 200, rel=1e-5
    )
    assert sum(part.rows for part in found.bins) == 200
    assert found.confidence == pytest.approx(float(logits.softmax(-1).max(-1).values.mean()))
    if scale < 100:
        assert (found.ece, found.brier) == pytest.approx((ece, brier), rel=1e-5)
        assert found.nll == pytest.approx(by_hand(logits, labels, 10)[2])
    else:
        assert found.brier == pytest.approx(2 * (1 - found.accuracy), abs=0.05), "all or nothing"


def test_rows_without_one_of_the_classes():
    logits, labels = torch.tensor([[2.0, 0.0, 1.0]] * 20, dtype=torch.float64), torch.tensor([0, 2] * 10)
    ece, brier, nll = by_hand(logits, labels, 15)
    found = measure_reliability(logits, labels)
    assert (found.ece, found.brier, found.nll) == pytest.approx((ece, brier, nll), rel=1e-5)


def slope(logits, labels, temperature):
    """Of the mean negative log-likelihood in 1 / T: the expected logit less the label's."""
    expected = ((logits / temperature).softmax(-1) * logits).sum(-1)
    return float((expected - logits.gather(1, labels[:, None])[:, 0]).mean())


@pytest.mark.parametrize("seed", range(5))
def test_the_temperature_is_where_the_likelihood_is_level(seed):
    torch.manual_seed(seed)
    logits = 4 * torch.randn(300, 4, dtype=torch.float64)
    labels = torch.distributions.Categorical(logits=logits / (0.5 + seed)).sample()
    found = fit_temperature(logits, labels)
    assert abs(slope(logits, labels, found)) < 1e-4 < abs(slope(logits, labels, 1.1 * found))
    assert found == pytest.approx(0.5 + seed, rel=0.35)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * found, rel=1e-4)


@pytest.mark.parametrize("seed", range(10))
def test_a_temperature_is_never_worse_where_it_was_fitted(seed):
    torch.manual_seed(seed)
    logits, labels = 10**seed / 1e4 * torch.randn(15, 3, dtype=torch.float64), torch.randint(3, (15,))
    found = fit_temperature(logits, labels)
    assert BOUNDS[0] <= found <= BOUNDS[1]
    nll = nn.functional.cross_entropy
    assert float(nll(logits / found, labels)) <= float(nll(logits, labels))


def test_what_no_temperature_can_be_enough_for():
    logits = torch.eye(3, dtype=torch.float64).repeat(10, 1)
    labels = logits.argmax(-1)
    assert fit_temperature(0.1 * logits, labels) == pytest.approx(BOUNDS[0], rel=1e-3), "all are right"
    assert fit_temperature(100 * logits, (labels + 1) % 3) == pytest.approx(BOUNDS[1], rel=1e-3), "none is"


class Net(nn.Module):
    """A user's own classifier, which is too sure."""

    def __init__(self, outputs=3):
        super().__init__()
        self.scale, self.drop = nn.Parameter(torch.tensor(4.0)), nn.Dropout(0.5)

    def forward(self, x, labels):
        logits = self.scale * self.drop(x)
        if logits.shape[-1] == 1:
            return {"loss": (logits[:, 0] - labels).square().mean(), "logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def batches_of(x, labels, size=16):
    return [
        {"x": one, "labels": own} for one, own in zip(x.split(size), labels.split(size), strict=True)
    ]  # of unequal size


def test_a_model_is_measured_on_the_rows_that_were_not_fitted_to():
    torch.manual_seed(0)
    x = torch.randn(90, 3)
    labels = torch.distributions.Categorical(logits=x).sample()
    model = Net().train()
    found = calibrate(model, batches_of(x, labels), share=0.6, seed=5, bins=8)
    assert model.training
    assert (found.fitted, found.measured) == (54, 36)
    fit, rest = split_rows(90, 0.6, 5)
    assert sorted([*fit.tolist(), *rest.tolist()]) == list(range(90))
    assert (len(fit), len(rest)) == (54, 36)
    logits = 4.0 * x.double()
    assert found.temperature == pytest.approx(fit_temperature(logits[fit], labels[fit]), rel=1e-4)
    assert found.before.nll == pytest.approx(by_hand(logits[rest], labels[rest], 8)[2])
    assert (found.after.ece, found.after.brier, found.after.nll) == pytest.approx(
        by_hand(logits[rest] / found.temperature, labels[rest], 8), rel=1e-4
    )
    assert found.after.accuracy == found.before.accuracy
    assert found.after.nll < found.before.nll
    assert reliability_diagram({"one": found, "$other_$": found}).startswith(b"\x89PNG")


def test_what_cannot_be_calibrated_is_one_line():
    x = torch.randn(30, 1)
    with pytest.raises(ValueError, match=r"^RUN a: Net is a regression, and only probabilities"):
        calibrate(Net(), batches_of(x, torch.randn(30)), asked="RUN a")
    with pytest.raises(ValueError, match=r"12 rows split into 6 .* and 6 to measure; at least 10"):
        calibrate(Net(), batches_of(torch.randn(12, 3), torch.randint(3, (12,))))
    with pytest.raises(ValueError, match="at least 10 of each"):
        split_rows(100, 0.95, 0)
    with pytest.raises(ValueError, match="there is nothing to ask"):
        calibrate(Net(), [])

"""What a method gains over seeds and examples, from the predictions that its runs kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hf_rat.data.metrics import METRICS, scores_of
from hf_rat.experiments.crossed import CrossedDifference, crossed_difference, pseudo_values
from hf_rat.experiments.records import Record, metric_of


def gain_over_examples(
    runs: Mapping[int, Record], baseline: Mapping[int, Record], score: str, notes: list[str]
) -> CrossedDifference | None:
    """What a method gains over the baseline for test sets like this one.

    Args:
        runs, baseline: seed -> run, of the method and of the baseline.
        score: name of the score, eval_ or test_ in front.
        notes: gets a line if predictions are there and cannot be used.

    Returns:
        None where they were not kept, or do not suffice for the score, as for a loss.

    Raises:
        ValueError: a file of predictions is cut short.
    """
    shared = [
        seed
        for seed in runs
        if seed in baseline and None not in (runs[seed].number(score), baseline[seed].number(score))
    ]
    measure = _measure(runs[shared[0]], score)
    kept = {seed: (runs[seed].predictions(score), baseline[seed].predictions(score)) for seed in shared}
    pairs = {seed: (own, other) for seed, (own, other) in kept.items() if own is not None and other is not None}
    if measure is None or not any(own is not None for own, _ in kept.values()):
        return None
    method = runs[shared[0]].method
    if len(pairs) < len(shared):
        notes.append(f"{method}: predictions of {len(pairs)} of {len(shared)} pairs are there; no second interval")
        return None
    if any(not np.array_equal(own[1], other[1]) for own, other in pairs.values()):
        notes.append(f"{method}: its runs answered other examples than the baseline's; no second interval")
        return None
    expected = pairs[shared[0]][0][1]
    if any(not np.array_equal(own[1], expected) for own, _ in pairs.values()):
        note = "each seed has test examples of its own: the interval over seeds is one over examples, too"
        notes += [] if note in notes else [note]
        return None
    sides = []
    for at, side in enumerate((runs, baseline)):
        for seed in shared:
            if abs(measure(pairs[seed][at][0], expected) - side[seed].results[score]) > 1e-6:
                notes.append(f"the predictions of {side[seed].path.with_suffix('')} do not give its score; left out")
                return None
        predicted = np.stack([pairs[seed][at][0] for seed in shared])
        if metric_of(score)[0] == "accuracy":
            sides.append((predicted == expected).astype(np.float64))
        elif metric_of(score)[0] == "mse":
            sides.append(-np.square(predicted - expected))
        else:
            sides.append(pseudo_values(measure, predicted, expected))
    if not all(np.isfinite(side).all() for side in sides):  # as a correlation of predictions that are all alike
        notes.append(f"{method}: without some examples there is no {metric_of(score)[0]}; no second interval")
        return None
    return crossed_difference(*sides)


def _measure(record: Record, score: str) -> Callable[[np.ndarray, np.ndarray], float] | None:
    """The score as a function of predictions and labels; None where they do not suffice, as for a loss."""
    metric, suffix = metric_of(score)
    split = score.partition("_")[0]
    if metric in METRICS:
        return METRICS[metric]
    parts = [metric_of(name)[0] for name in record.scores if name.startswith(split) and metric_of(name)[1] == suffix]
    names = [name for name in parts if name in METRICS]
    if metric != "combined_score" or not names:
        return None
    return lambda predicted, expected: scores_of(names, predicted, expected)["combined_score"]

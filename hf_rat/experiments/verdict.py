"""The numbers of a comparison: each method's scores, what it gains over the baseline, what that costs.

A gain is the method's score minus the baseline's, or the other way round where lower is better: above zero the method
is better. All numbers are in the unit of the score itself, from 0 to 1 for accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

from hf_rat.data.metrics import LOWER_IS_BETTER, METRICS
from hf_rat.experiments.across import Across, compare_across
from hf_rat.experiments.crossed import CrossedDifference
from hf_rat.experiments.examples import gain_over_examples
from hf_rat.experiments.paired import Difference, holm, paired_difference
from hf_rat.experiments.records import Record, bare, by_cell, metric_of, usual_score

FEWEST_CELLS = 4  # from so many on, a verdict over all of them is given
_PERCENT = {*METRICS, "combined_score"} - {"mse"}


@dataclass(frozen=True)
class Row:
    """One method in one cell.

    Args:
        method: as tables call it.
        values: seed -> score.
        records: seed -> run, also of those that failed.
        failed: seeds whose run did not finish.
        missing: seeds that other methods of the cell have and this one has not.
        unscored: seeds whose run finished without this score, or with one that is no finite number.
        mean, sd: of `values`; None without any, and sd of one.
        seconds: of training, the median over seeds, which a busy hour does not move; None where no run says it.
        cost: median of the ratios of these seconds to the baseline's, over seeds that both have.
        gain: over the baseline for this very test set; None for the baseline itself and where no seed is shared.
        corrected: p of the gain after Holm's correction for all methods of the cell; None without two pairs.
        gain_on_tests_like_it: the gain over seeds and examples; None where predictions were not kept.
        trials: runs that the search for its arguments made; None where no search is told.
        settings: how many different ones they tried.
        chosen: argument or flag -> the value that was chosen; empty where there was nothing to choose.
        held_back: score of the chosen one on held-back training data.
        gap: `held_back` minus `mean`.
    """

    method: str
    values: Mapping[int, float]
    records: Mapping[int, Record]
    failed: Sequence[int]
    missing: Sequence[int]
    unscored: Sequence[int]
    mean: float | None
    sd: float | None
    seconds: float | None
    cost: float | None
    gain: Difference | None
    corrected: float | None
    gain_on_tests_like_it: CrossedDifference | None
    trials: int | None
    settings: int | None
    chosen: Mapping[str, str]
    held_back: float | None
    gap: float | None


@dataclass(frozen=True)
class Cell:
    """One data set with one model.

    Args:
        name: empty where there is but one.
        score: with eval_ or test_ in front: the split that it is of.
        baseline: its method.
        rows: methods, in the order of the records.
        notes: a line for each thing that was left out, and why.
    """

    name: str
    score: str
    baseline: str
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def lower_is_better(self) -> bool:
        return metric_of(self.score)[0] in LOWER_IS_BETTER

    @property
    def scale(self) -> float:
        """What a score is multiplied with to be shown: 100 for what is told in percent and points."""
        return 100.0 if metric_of(self.score)[0] in _PERCENT else 1.0

    def row(self, method: str) -> Row | None:
        return next((row for row in self.rows if row.method == method), None)


@dataclass(frozen=True)
class Verdict:
    """A comparison.

    Args:
        baseline: the method that others are compared with.
        cells: data sets and models.
        across: the gains over all cells, in points (100 times a score) where all scores have such; None below
            four cells.
    """

    baseline: str
    cells: Sequence[Cell]
    across: Across | None


def judge(records: Sequence[Record], baseline: str | None = None, score: str | None = None) -> Verdict:
    """Compare the methods of finished runs.

    Args:
        records: of all methods, seeds and cells.
        baseline: a method; None takes plain where every cell has it, else the first.
        score: a name without eval_ or test_; None takes each cell's first score that is no loss and not of the
            training rows. That of the test split counts where all finished runs of a cell have it.

    Raises:
        ValueError: the baseline is no method of a cell, or no run of a cell has the score.
    """
    cells = by_cell(records)
    if baseline is None:
        everywhere = all("plain" in methods for methods in cells.values())
        baseline = "plain" if everywhere else records[0].method
    for name, methods in cells.items():
        if baseline not in methods:
            raise ValueError(f"--baseline {baseline}: no run{_on(name)} is of it; there are: {', '.join(methods)}")
    told = [_cell(name, methods, baseline, score) for name, methods in cells.items()]
    return Verdict(baseline, told, _across(told, baseline))


def all_scores(row: Row) -> dict[str, dict[str, Any]]:
    """Every score that all finished runs of a method have, with each seed's value, in the order of the seeds."""
    finished = [record for record in row.records.values() if record.finished]
    scores = {}
    for name in finished[0].scores if finished else ():
        if all(name in record.scores for record in finished):
            values = [float(record.results[name]) for record in finished]
            scores[name] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": values}
    return scores


def _on(cell: str) -> str:
    return f" on {cell}" if cell else ""


def _cell(name: str, methods: Mapping[str, Mapping[int, Record]], baseline: str, asked: str | None) -> Cell:
    finished = [record for seeds in methods.values() for record in seeds.values() if record.finished]
    score = _score(name, finished, asked)
    empty = Cell(name, score, baseline, (), ())
    sign = -1 if empty.lower_is_better else 1
    seeds = sorted({seed for runs in methods.values() for seed in runs})
    values = {method: _values(runs, score) for method, runs in methods.items()}
    gains = {}
    for method, own in values.items():
        shared = [seed for seed in own if seed in values[baseline]]
        if method != baseline and shared:
            gains[method] = paired_difference(
                [sign * own[seed] for seed in shared], [sign * values[baseline][seed] for seed in shared]
            )
    tested = [method for method, gain in gains.items() if gain.n > 1]
    corrected = dict(zip(tested, holm([gains[method].p for method in tested]), strict=True))
    notes: list[str] = []
    rows = []
    for method, runs in methods.items():
        own = values[method]
        failed = [seed for seed, record in runs.items() if not record.finished]
        average = mean(own.values()) if own else None
        search = next(iter(runs.values())).search or {}
        held_back = {bare(name): value for name, value in (search.get("held_back") or {}).items()}.get(bare(score))
        wider = gain_over_examples(runs, methods[baseline], score, notes) if method in gains else None
        rows.append(
            Row(
                method=method,
                values=own,
                records=runs,
                failed=failed,
                missing=[seed for seed in seeds if seed not in runs],
                unscored=[seed for seed in runs if seed not in own and seed not in failed],
                mean=average,
                sd=stdev(own.values()) if len(own) > 1 else None,
                seconds=_seconds(runs),
                cost=_cost(runs, methods[baseline]),
                gain=gains.get(method),
                corrected=corrected.get(method),
                gain_on_tests_like_it=wider,
                trials=search.get("trials"),
                settings=search.get("settings"),
                chosen=search.get("chosen") or {},
                held_back=held_back,
                gap=None if held_back is None or average is None else held_back - average,
            )
        )
    return Cell(name, score, baseline, rows, notes)


def _score(cell: str, finished: Sequence[Record], asked: str | None) -> str:
    """The name of the score that counts, eval_ or test_ in front."""
    known = list(dict.fromkeys(bare(name) for record in finished for name in record.scores))
    if not known:
        raise ValueError(f"no run{_on(cell)} has finished with a score: there is nothing to compare")
    if asked is None:
        asked = usual_score(known)
    elif asked not in known:
        raise ValueError(f"--score {asked}: no run{_on(cell)} has it; there are: {', '.join(known)}")
    names = (f"test_{asked}", f"eval_{asked}")
    everywhere = [name for name in names if all(name in record.scores for record in finished)]
    anywhere = [name for name in names if any(name in record.scores for record in finished)]
    return (everywhere or anywhere)[0]


def _values(runs: Mapping[int, Record], score: str) -> dict[int, float]:
    found = {seed: record.number(score) for seed, record in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _seconds(runs: Mapping[int, Record]) -> float | None:
    told = [record.number("train_runtime") for record in runs.values()]
    known = [seconds for seconds in told if seconds is not None]
    return median(known) if known else None


def _cost(runs: Mapping[int, Record], baseline: Mapping[int, Record]) -> float | None:
    """Median ratio of training seconds to those of the baseline with the same seed."""
    ratios = []
    for seed, record in runs.items():
        own, other = (
            record.number("train_runtime"),
            baseline[seed].number("train_runtime") if seed in baseline else None,
        )
        if own and other:
            ratios.append(own / other)
    return median(ratios) if ratios else None


def _across(cells: Sequence[Cell], baseline: str) -> Across | None:
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for cell in cells:
        scale = -cell.scale if cell.lower_is_better else cell.scale
        own = {row.method: {seed: scale * value for seed, value in row.values.items()} for row in cell.rows}
        if own[baseline]:
            scores[cell.name] = {m: seeds for m, seeds in own.items() if seeds.keys() & own[baseline].keys()}
    return compare_across(scores, baseline) if len(scores) >= FEWEST_CELLS else None

"""A verdict as the page shows it: its sentences, its tables, every seed as a dot, scores against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_rat.experiments.pictures import interval_from_baseline
from hf_rat.experiments.sentences import code, headlines, lacks, score_of, sentence, sentences_across
from hf_rat.experiments.tables import Table, tables_across, tables_of_cell
from hf_rat.experiments.verdict import Cell, Row, Verdict
from hf_rat.report.curves import learning_curves
from hf_rat.report.folders import state_of
from hf_rat.report.plots import Axis, Look, Mark, Plot, Series, path


@dataclass(frozen=True)
class Strip:
    """One method among those whose seeds are shown as dots; places in percent of the common axis.

    Args:
        name: of the method.
        look: colour and form.
        baseline: whether it is the one that others are compared with.
        dots: seeds.
        mean: of the seeds; None where none has finished.
        interval: of the gain, from the baseline's mean; None where there is none.
        beyond: the ends of the interval, "left" and "right", that lie outside the axis.
    """

    name: str
    look: Look
    baseline: bool
    dots: Sequence[Mark]
    mean: float | None
    interval: tuple[float, float] | None
    beyond: Sequence[str]


@dataclass(frozen=True)
class Seeds:
    """Every seed of a cell; `centre` is the baseline's mean."""

    axis: Axis
    strips: Sequence[Strip]
    centre: float | None


@dataclass(frozen=True)
class CellPage:
    """What the page says of one cell.

    Args:
        name: empty where there is but one.
        headline: its verdict in a sentence, in Markdown; empty where that is given over all cells.
        score: the score in words.
        sentences: one a method, and what does not count, in Markdown.
        table: scores, gains and tests.
        more: further tables.
        seeds: every seed as a dot.
        cost: scores against seconds; None where no run tells them.
        curves: what the runs logged.
        curves_of: how many runs that is, of how many.
    """

    name: str
    headline: str
    score: str
    sentences: Sequence[str]
    table: Table
    more: Sequence[Table]
    seeds: Seeds
    cost: Plot | None
    curves: Sequence[Plot]
    curves_of: tuple[int, int]


@dataclass(frozen=True)
class AcrossPage:
    """What the page says over all cells."""

    headline: str
    score: str
    sentences: Sequence[str]
    tables: Sequence[Table]


def looks_of(verdict: Verdict) -> dict[str, Look]:
    """Method -> how it is drawn, the same in every cell."""
    methods = dict.fromkeys(row.method for cell in verdict.cells for row in cell.rows)
    return {method: Look.of(number) for number, method in enumerate(methods)}


def across_page(verdict: Verdict) -> AcrossPage | None:
    """Over all cells; None where the verdict gives nothing over them."""
    if verdict.across is None:
        return None
    percent = all(cell.scale == 100 for cell in verdict.cells)
    called = _called(verdict)
    told = sentences_across(verdict.across, called, verdict.baseline, percent)
    tables = tables_across(verdict.across, called, verdict.baseline, percent)
    scores = dict.fromkeys(score_of(cell) for cell in verdict.cells)
    return AcrossPage(headlines(verdict, called)[""], "; ".join(scores), told, tables)


def cell_pages(verdict: Verdict) -> list[CellPage]:
    """Every cell, in order.

    Raises:
        ValueError: what a run logged is cut short.
    """
    called, looks = _called(verdict), looks_of(verdict)
    said = {} if verdict.across is not None else headlines(verdict, called)
    return [_cell_page(cell, said.get(cell.name, ""), called, looks) for cell in verdict.cells]


def _called(verdict: Verdict) -> dict[str, str]:
    return {row.method: code(row.method) for cell in verdict.cells for row in cell.rows}


def _cell_page(cell: Cell, headline: str, called: Mapping[str, str], looks: Mapping[str, Look]) -> CellPage:
    others = [row for row in cell.rows if row.method != cell.baseline]
    told = [sentence(cell, row, called[row.method], called[cell.baseline]) for row in others]
    told += [f"{called[row.method]}: {lacks(row)}." for row in cell.rows if lacks(row)]
    told += [f"{note[:1].upper()}{note[1:]}." for note in cell.notes]
    made = tables_of_cell(cell, called)
    first = [table for table in made if {"SD", "wins", "Holm"} & set(table.header)]
    states = {
        row.method: [state_of(record.path.with_suffix("")) for record in row.records.values()] for row in cell.rows
    }
    logged = {m: [s["log_history"] for s in found if s.get("log_history")] for m, found in states.items()}
    return CellPage(
        name=cell.name,
        headline=headline,
        score=score_of(cell),
        sentences=told,
        table=_joined(first),
        more=[table for table in made if table not in first],
        seeds=_seeds(cell, looks),
        cost=_cost(cell, looks),
        curves=learning_curves({m: found for m, found in logged.items() if found}, looks),
        curves_of=(sum(map(len, logged.values())), sum(map(len, states.values()))),
    )


def _joined(tables: Sequence[Table]) -> Table:
    """Narrow tables about the same methods as one wide table."""
    header = ["method", *(name for table in tables for name in table.header[1:])]
    methods = dict.fromkeys(row[0] for table in tables for row in table.rows)
    rows = []
    for method in methods:
        row = [method]
        for table in tables:
            row += next((list(one[1:]) for one in table.rows if one[0] == method), [""] * (len(table.header) - 1))
        rows.append(row)
    return Table(header, rows, " ".join(table.below for table in tables if table.below))


def _seeds(cell: Cell, looks: Mapping[str, Look]) -> Seeds:
    values = [cell.scale * value for row in cell.rows for value in row.values.values()]
    centre = _centre(cell)
    axis = Axis.over(
        score_of(cell).partition(",")[0].partition(";")[0], values, 0.35
    )  # a bar of few seeds may run off
    strips = []
    for row in cell.rows:
        bar = interval_from_baseline(cell, row, centre)
        dots = []
        for number, (seed, value) in enumerate(row.values.items()):
            aside = 0.0 if len(row.values) < 2 else number / (len(row.values) - 1) - 0.5
            dots.append(Mark(axis.place(cell.scale * value), 50 + 44 * aside, f"seed {seed}: {_shown(cell, value)}"))
        beyond = (
            [] if bar is None else [end for end, at in zip(("left", "right"), bar, strict=True) if not axis.holds(at)]
        )
        strips.append(
            Strip(
                name=row.method,
                look=looks[row.method],
                baseline=row.method == cell.baseline,
                dots=dots,
                mean=None if row.mean is None else axis.place(cell.scale * row.mean),
                interval=None if bar is None else (axis.place(bar[0]), axis.place(bar[1])),
                beyond=beyond,
            )
        )
    return Seeds(axis, strips, None if centre is None else axis.place(cell.scale * centre))


def _cost(cell: Cell, looks: Mapping[str, Look]) -> Plot | None:
    shown = [(row, row.seconds, cell.scale * row.mean) for row in cell.rows if row.mean is not None and row.seconds]
    if not shown:
        return None
    centre = _centre(cell)
    score = score_of(cell).partition(",")[0].partition(";")[0]
    x = Axis.over("seconds of training, median of the seeds", [seconds for _, seconds, _ in shown], 0.08, zero=True)
    y = Axis.over(score, [mean for _, _, mean in shown], 0.6, ticks=4)
    series = []
    for row, seconds, mean in shown:
        bar = interval_from_baseline(cell, row, centre)
        line = [] if bar is None else [path([(seconds, bar[0]), (seconds, bar[1])], x, y)]
        said = f"{row.method}: {_shown(cell, mean / cell.scale)}, {seconds:.0f} s{_times(row)}"
        series.append(
            Series(row.method, looks[row.method], line, (), [Mark(x.place(seconds), 100 - y.place(mean), said)])
        )
    rule = [] if centre is None else [path([(x.low, cell.scale * centre), (x.high, cell.scale * centre)], x, y)]
    return Plot("", x, y, series, rule, f"{score} against {x.label}, of {len(series)} methods")


def _times(row: Row) -> str:
    return "" if row.cost is None else f", {row.cost:.2f} times the baseline's"


def _centre(cell: Cell) -> float | None:
    baseline = cell.row(cell.baseline)
    return None if baseline is None else baseline.mean


def _shown(cell: Cell, value: float) -> str:
    return f"{cell.scale * value:.2f}" if cell.scale == 100 else f"{value:.4f}"

"""A verdict for other programs: JSON with everything, CSV with a row for each method and cell, LaTeX for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from hf_rat.experiments.sentences import OVER_CELLS, OVER_EXAMPLES, OVER_SEEDS, code, sentence, sentences_across
from hf_rat.experiments.verdict import Cell, Row, Verdict, all_scores

_LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "-": "-{}",  # so that two of them stay two
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
}


def everything(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON takes it: the cells, a row for each method in each, and the gains over cells.

    All scores, gains and intervals of rows are in the unit of the score itself, those over cells are 100 times as much
    where the score is told in percent.
    """
    percent = all(cell.scale == 100 for cell in verdict.cells)
    told: dict[str, Any] = {
        "baseline": verdict.baseline,
        "intervals": {"gain": OVER_SEEDS, "gain_on_tests_like_it": OVER_EXAMPLES, "across": OVER_CELLS},
        "cells": [
            {
                "cell": cell.name,
                "score": cell.score,
                "lower_is_better": cell.lower_is_better,
                "notes": list(cell.notes),
            }
            for cell in verdict.cells
        ],
        "methods": [_row(cell, row) for cell in verdict.cells for row in cell.rows],
        "across": None,
    }
    if verdict.across is not None:
        called = {method: code(method) for method in [*verdict.across.gains, verdict.baseline]}
        verdicts = sentences_across(verdict.across, called, verdict.baseline, percent)
        told["across"] = {**asdict(verdict.across), "verdict": verdicts}
    return told


def _row(cell: Cell, row: Row) -> dict[str, Any]:
    finished = {seed: record for seed, record in row.records.items() if record.finished}
    is_baseline = row.method == cell.baseline
    return {
        "cell": cell.name,
        "method": row.method,
        "verdict": None if is_baseline else sentence(cell, row, code(row.method), code(cell.baseline)),
        "score": cell.score,
        "n": len(row.values),
        "mean": row.mean,
        "sd": row.sd,
        "values": {str(seed): value for seed, value in row.values.items()},
        "gain": None if row.gain is None else asdict(row.gain),
        "holm": row.corrected,
        "gain_on_tests_like_it": None if row.gain_on_tests_like_it is None else asdict(row.gain_on_tests_like_it),
        "seconds": row.seconds,
        "cost": row.cost,
        "trials": row.trials,
        "settings": row.settings,
        "chosen": dict(row.chosen),
        "held_back": row.held_back,
        "gap": row.gap,
        "failed": list(row.failed),
        "missing": list(row.missing),
        "unscored": list(row.unscored),
        "seeds": list(finished),
        "scores": all_scores(row),
        "commands": [record.command for record in row.records.values()],
        "git": _distinct(record.told.get("git") for record in row.records.values()),
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


def as_csv(verdict: Verdict) -> str:
    """A line for each method in each cell, in the unit of the score; what is not known is empty."""
    lines = [_line(cell, row) for cell in verdict.cells for row in cell.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(cell: Cell, row: Row) -> dict[str, Any]:
    gain, wider = row.gain, row.gain_on_tests_like_it
    return {
        "cell": cell.name,
        "method": row.method,
        "score": cell.score,
        "n": len(row.values),
        "mean": row.mean,
        "sd": row.sd,
        "gain": gain and gain.mean,
        "gain_low": gain and gain.low,
        "gain_high": gain and gain.high,
        "pairs": gain and gain.n,
        "wins": gain and gain.wins,
        "ties": gain and gain.ties,
        "p": gain and gain.p,
        "p_holm": row.corrected,
        "detectable": gain and gain.detectable,
        "seeds_needed": gain and gain.seeds_needed,
        "gain_on_tests_like_it": wider and wider.mean,
        "gain_on_tests_like_it_low": wider and wider.low,
        "gain_on_tests_like_it_high": wider and wider.high,
        "seconds": row.seconds,
        "cost": row.cost,
        "trials": row.trials,
        "settings": row.settings,
        "chosen": " ".join(f"{name}={value}" for name, value in row.chosen.items()),
        "held_back": row.held_back,
        "gap": row.gap,
        "failed": " ".join(map(str, row.failed)),
        "missing": " ".join(map(str, row.missing)),
        "unscored": " ".join(map(str, row.unscored)),
    }


def as_latex(verdict: Verdict) -> str:
    """A table of the package booktabs for each cell, and one over cells."""
    return "\n".join(["% needs \\usepackage{booktabs}", *_latex_lines(verdict)]) + "\n"


def _latex_lines(verdict: Verdict) -> Iterator[str]:
    for cell in verdict.cells:
        if cell.name:
            yield f"% {' '.join(cell.name.split())}"
        header = ["method", "$n$", escaped(cell.score), "gain", r"95\,\% interval", "$p$ (Holm)", "wins", "cost"]
        yield from _tabular("lrrrcrrr", header, [_latex_row(cell, row) for row in cell.rows])
    if verdict.across is not None:
        across = verdict.across
        yield f"% over {len(across.cells)} cells: interquartile mean of the gains, probability of improvement, rank"
        rows = [[escaped(verdict.baseline), "", "", "", f"{across.mean_ranks[verdict.baseline]:.1f}"]]
        for method, gains in across.gains.items():
            middle, rank = gains.points, across.mean_ranks[method]
            interval = "" if middle.low is None else f"$[{middle.low:+.2f}, {middle.high:+.2f}]$"
            rows.append(
                [escaped(method), f"${middle.mean:+.2f}$", interval, f"{gains.improvement:.2f}", f"{rank:.1f}"]
            )
        yield from _tabular("lrcrr", ["method", "gain", r"95\,\% interval", "$P$(better)", "mean rank"], rows)


def _tabular(columns: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (f"\\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule")
    yield from (" & ".join(row) + r" \\" for row in rows)
    yield from (r"\bottomrule", r"\end{tabular}")


def _latex_row(cell: Cell, row: Row) -> list[str]:
    digits = 2 if cell.scale == 100 else 4
    score = "--" if row.mean is None else f"{cell.scale * row.mean:.{digits}f}"
    if row.sd is not None:
        score = f"${score} \\pm {cell.scale * row.sd:.{digits}f}$"
    cells = ["", "", "", ""]
    if row.gain is not None:
        low, high = row.gain.low, row.gain.high
        interval = (
            ""
            if low is None or high is None
            else (f"$[{cell.scale * low:+.{digits}f}, {cell.scale * high:+.{digits}f}]$")
        )
        p = "" if row.corrected is None else f"{row.corrected:.2g}"
        cells = [f"${cell.scale * row.gain.mean:+.{digits}f}$", interval, p, f"{row.gain.wins} of {row.gain.n}"]
    cost = "" if row.cost is None else f"{row.cost:.2f}"
    return [escaped(row.method), str(len(row.values)), score, *cells, cost]


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))

"""A verdict as narrow Markdown tables, which fit a terminal of 80 columns, and as LaTeX."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple

from hf_rat.experiments.across import Across
from hf_rat.experiments.crossed import CrossedDifference
from hf_rat.experiments.paired import Difference
from hf_rat.experiments.sentences import (
    OVER_CELLS,
    OVER_EXAMPLES,
    OVER_SEEDS,
    code,
    lacks,
    score_of,
    sentence,
    sentences_across,
)
from hf_rat.experiments.verdict import Cell, Verdict, all_scores

WIDTH = 80
_LONGEST = (28, 20, 12, 1)  # of a method's name that stands in a table; longer ones become letters
_TAUS = (-1.0, 0.0, 1.0, 2.0, 3.0)  # of the performance profile that is printed


class Table(NamedTuple):
    """Header and rows, whose first cell is the method, and the paragraph below."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    below: str


def markdown(verdict: Verdict, tables: bool = True) -> str:
    """The verdict as Markdown, its tables at most 80 columns wide; a paragraph is one line.

    Args:
        verdict: any.
        tables: False leaves out those of the cells where there are several cells.
    """
    blocks: list[Sequence[str]] = []
    for cell in verdict.cells:
        blocks += [[f"## {cell.name}"]] if cell.name else []
        blocks += _cell(cell, tables or len(verdict.cells) == 1)
    if verdict.across is not None:
        blocks += [[f"## Over {len(verdict.across.cells)} cells"], *_across(verdict)]
    blocks.append([estimands(verdict)])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def wrapped(text: str) -> str:
    """Markdown with the paragraphs broken at 80 columns, for the terminal."""
    lines = []
    for line in text.splitlines():
        wide = columns(line) > WIDTH and not line.startswith("|")
        lines += textwrap.wrap(line, WIDTH // 2 if not line.isascii() else WIDTH) if wide else [line]
    return "\n".join(lines)


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def _cell(cell: Cell, tables: bool) -> Iterator[Sequence[str]]:
    """Blocks of lines: what is scored, letters, sentences, what does not count, tables."""
    called, made = _fitting([row.method for row in cell.rows], lambda names: tables_of_cell(cell, names))
    yield [f"{score_of(cell)[0].upper()}{score_of(cell)[1:]}."]
    yield _legend(called)
    others = [row for row in cell.rows if row.method != cell.baseline]
    yield [f"- {sentence(cell, row, called[row.method], called[cell.baseline])}" for row in others]
    yield [f"- {called[row.method]}: {lacks(row)}." for row in cell.rows if lacks(row)]
    yield [f"- {note}." for note in cell.notes]
    for table in made if tables else ():
        yield from (_drawn(table), [table.below] if table.below else [])


def _legend(called: Mapping[str, str]) -> list[str]:
    return [f"- {name} is {code(method)}" for method, name in called.items() if name != code(method)]


def _fitting(
    methods: Sequence[str], build: Callable[[Mapping[str, str]], list[Table]]
) -> tuple[dict[str, str], list[Table]]:
    """Names of the methods, the long ones as letters, so that what is built with them fits; and what is built."""
    for longest in _LONGEST:
        letters = (f"{first}{second}" for first in ("", *ascii_uppercase) for second in ascii_uppercase)
        called = {m: code(m) if columns(m) <= longest and "|" not in m else next(letters) for m in methods}
        made = build(called)
        if all(columns(line) <= WIDTH for table in made for line in _drawn(table)):
            break
    return called, made


def tables_of_cell(cell: Cell, called: Mapping[str, str]) -> list[Table]:
    """Every table of a cell that has rows: scores, gains, tests, gains for tests like it, trials, every score."""
    made = [_scores(cell, called), _gains(cell, called), _tests(cell, called), _wider(cell, called)]
    return [table for table in [*made, _trials(cell, called), *_all_scores(cell, called)] if table.rows]


def _scores(cell: Cell, called: Mapping[str, str]) -> Table:
    rows = [
        [
            called[row.method],
            str(len(row.values)),
            _number(cell, row.mean),
            _number(cell, row.sd),
            _short(row.seconds, ".0f"),
            "-" if row.cost is None else f"{row.cost:.2f}x",
        ]
        for row in cell.rows
    ]
    below = (
        f"Seconds are those of training; cost is their ratio to those of {called[cell.baseline]} with the same seed."
    )
    return Table(("method", "n", "mean", "SD", "seconds", "cost"), rows, below)


def _gains(cell: Cell, called: Mapping[str, str]) -> Table:
    rows = []
    for method, gain in _compared(cell).items():
        wins = f"{gain.wins} of {gain.n}" + (f", {gain.ties} tied" if gain.ties else "")
        rows.append([called[method], _signed(cell, gain.mean), _interval(cell, gain), wins])
    return Table(("method", "gain", "95 % interval", "wins"), rows, f"Gains are over {called[cell.baseline]}.")


def _tests(cell: Cell, called: Mapping[str, str]) -> Table:
    tested = {method: gain for method, gain in _compared(cell).items() if gain.n > 1}
    rows = [
        [
            called[row.method],
            f"{tested[row.method].p:.2g}",
            _short(row.corrected, ".2g"),
            _number(cell, tested[row.method].detectable),
            _short(tested[row.method].seeds_needed, ","),
        ]
        for row in cell.rows
        if row.method in tested
    ]
    below = (
        f"p is that of all changes of sign of the paired differences, Holm's is corrected for all methods."
        f'{_reach(list(tested.values()))} These seeds detect a gain as large as "could see", and it takes "needs" of'
        " them to detect the gain that was seen, both with 80 % power at .05."
    )
    return Table(("method", "p", "Holm", "could see", "needs"), rows, below)


def _wider(cell: Cell, called: Mapping[str, str]) -> Table:
    rows = [
        [called[row.method], _signed(cell, gain.mean), _interval(cell, gain), str(gain.units)]
        for row in cell.rows
        if (gain := row.gain_on_tests_like_it) is not None
    ]
    below = "The same gains for test sets like this one: over seeds and examples."
    return Table(("method", "gain", "95 % interval", "examples"), rows, below)


def _trials(cell: Cell, called: Mapping[str, str]) -> Table:
    rows = [
        [
            called[row.method],
            str(row.trials),
            _short(row.settings, "d"),
            _number(cell, row.held_back),
            _number(cell, row.mean),
            _signed(cell, row.gap),
        ]
        for row in cell.rows
        if row.trials is not None
    ]
    below = "Trials chose each method's arguments on held-back training data; the gap is what was lost from there."
    for row in cell.rows:
        if row.chosen:
            below += f" {called[row.method]}: {', '.join(f'{name} {value}' for name, value in row.chosen.items())}."
    return Table(("method", "trials", "settings", "held back", "final", "gap"), rows, below)


def _compared(cell: Cell) -> dict[str, Difference]:
    return {row.method: row.gain for row in cell.rows if row.gain is not None}


def _reach(gains: Sequence[Difference]) -> str:
    """Which p cannot reach .05, however large the gains."""
    smallest = max((gain.smallest_p for gain in gains), default=0.0)
    if smallest > 0.05:
        return f" With {min(gain.n for gain in gains)} pairs p cannot reach .05: its smallest is {smallest:.2g}."
    if smallest * len(gains) > 0.05:
        return f" For {len(gains)} methods Holm's cannot reach .05: its smallest is {smallest * len(gains):.2g}."
    return ""


def _all_scores(cell: Cell, called: Mapping[str, str]) -> Iterator[Table]:
    """Mean and standard deviation of every score as the runs have it, a few to a table."""
    found = {row.method: all_scores(row) for row in cell.rows}
    names = list(dict.fromkeys(name for scores in found.values() for name in scores))
    room = WIDTH - 4 - max(map(columns, called.values()))
    while names:
        few = names[:1]
        while names[len(few) :] and sum(max(len(name), 15) + 3 for name in [*few, names[len(few)]]) <= room:
            few.append(names[len(few)])
        names = names[len(few) :]
        rows = [[called[m], *(_mean_and_sd(scores.get(name)) for name in few)] for m, scores in found.items()]
        yield Table(("method", *few), rows, "" if names else "Mean ± sample standard deviation of every score.")


def _mean_and_sd(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    return f"{score['mean']:.4f}" + ("" if score["std"] is None else f" ± {score['std']:.4f}")


def _across(verdict: Verdict) -> Iterator[Sequence[str]]:
    across = verdict.across
    assert across is not None
    percent = all(cell.scale == 100 for cell in verdict.cells)
    methods = [*across.gains, verdict.baseline]
    called, made = _fitting(methods, lambda names: tables_across(across, names, verdict.baseline, percent))
    scores = dict.fromkeys(score_of(cell) for cell in verdict.cells)
    yield [f"{'; '.join(scores)}."]
    yield _legend(called)
    yield [f"- {told}" for told in sentences_across(across, called, verdict.baseline, percent)]
    for table in made:
        yield from (_drawn(table), [table.below])


def tables_across(across: Across, called: Mapping[str, str], baseline: str, percent: bool) -> list[Table]:
    """Gains and ranks over all cells, and, where seeds vary in all of them, how many runs gain how much."""
    digits = 2 if percent else 4
    gains = []
    for method, name in called.items():
        rank = f"{across.mean_ranks[method]:.1f}"
        if method == baseline:
            gains.append([name, "", "", "", rank])
        else:
            one = across.gains[method]
            low, high = one.points.low, one.points.high
            interval = "-" if low is None else f"{low:+.{digits}f} to {high:+.{digits}f}"
            gains.append([name, f"{one.points.mean:+.{digits}f}", interval, f"{one.improvement:.2f}", rank])
    friedman = "" if across.friedman_p is None else f" All alike: p is {across.friedman_p:.2g} (Friedman)."
    below = (
        f"Interquartile mean of the gains over {called[baseline]}; the probability that a run is better than one of"
    )
    below += f" {called[baseline]}; mean rank, 1 is best.{friedman}"
    made = [Table(("method", "gain", "95 % interval", "better", "rank"), gains, below)]
    scaled = {method: one for method, one in across.gains.items() if one.profile is not None}
    if scaled:
        at = [across.grid.index(tau) for tau in _TAUS if tau in across.grid]
        header = ("method", *(f"> {across.grid[index]:g}" for index in at))
        shares = [
            [called[m], *(f"{one.profile[index]:.2f}" for index in at)] for m, one in scaled.items() if one.profile
        ]
        below = (
            "Share of runs that gain more than so many standard deviations over seeds (of the cell's median method)."
        )
        made.append(Table(header, shares, below))
    return made


def estimands(verdict: Verdict) -> str:
    """What the intervals of a verdict are intervals of."""
    wider = any(row.gain_on_tests_like_it is not None for cell in verdict.cells for row in cell.rows)
    return " ".join([OVER_SEEDS, *([OVER_EXAMPLES] if wider else []), *([OVER_CELLS] if verdict.across else [])])


def _drawn(table: Table) -> list[str]:
    header, rows = table.header, table.rows
    wide = [max(columns(row[index]) for row in (header, *rows)) for index in range(len(header))]
    lines = [
        "| " + " | ".join(_filled(text, wide[i], i) for i, text in enumerate(row)) + " |" for row in (header, *rows)
    ]
    rule = "|" + "|".join("-" * (n + 2) if i == 0 else "-" * (n + 1) + ":" for i, n in enumerate(wide)) + "|"
    return [lines[0], rule, *lines[1:]]


def _filled(text: str, wide: int, column: int) -> str:
    space = " " * (wide - columns(text))
    return text + space if column == 0 else space + text


def _short(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _number(cell: Cell, value: float | None) -> str:
    return _short(None if value is None else cell.scale * value, ".2f" if cell.scale == 100 else ".4f")


def _signed(cell: Cell, value: float | None) -> str:
    return _short(None if value is None else cell.scale * value, "+.2f" if cell.scale == 100 else "+.4f")


def _interval(cell: Cell, gain: Difference | CrossedDifference) -> str:
    return "-" if gain.low is None else f"{_signed(cell, gain.low)} to {_signed(cell, gain.high)}"

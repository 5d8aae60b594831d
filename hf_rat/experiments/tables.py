"""A verdict as narrow Markdown tables, which fit a terminal of 80 columns, and as LaTeX."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase

from hf_rat.experiments.across import Across
from hf_rat.experiments.sentences import (
    FEWEST_PAIRS,
    OVER_CELLS,
    OVER_EXAMPLES,
    OVER_SEEDS,
    code,
    lacks,
    score_of,
    sentence,
    sentences_across,
)
from hf_rat.experiments.verdict import Cell, Row, Verdict

WIDTH = 80
_LONGEST = (28, 20, 12, 1)  # of a method's name that stands in a table; longer ones become letters
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # header and rows; the first column is the method
_TAUS = (-1.0, 0.0, 1.0, 2.0, 3.0)  # of the performance profile that is printed


def markdown(verdict: Verdict, tables: bool = True) -> str:
    """The verdict as Markdown, its tables at most 80 columns wide; a paragraph is one line.

    Args:
        verdict: any.
        tables: False leaves out those of the cells where there are several cells.
    """
    lines: list[str] = []
    for cell in verdict.cells:
        if cell.name:
            lines += [f"## {cell.name}", ""]
        lines += _cell(cell, tables or len(verdict.cells) == 1)
    if verdict.across is not None:
        lines += [f"## Over {len(verdict.across.cells)} cells", "", *_across(verdict)]
    lines += _estimands(verdict)
    return "\n".join(lines).rstrip("\n") + "\n"


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


def _cell(cell: Cell, tables: bool) -> Iterator[str]:
    called, made = _fitting([row.method for row in cell.rows], lambda names: _tables(cell, names))
    yield from (f"{score_of(cell)[0].upper()}{score_of(cell)[1:]}.", "")
    for row in cell.rows:
        if row.method != cell.baseline:
            yield f"- {sentence(cell, row, called[row.method], called[cell.baseline])}"
    yield ""
    yield from _legend(called)
    for row in cell.rows:
        if lacks(row):
            yield f"- {called[row.method]}: {lacks(row)}."
    yield from (f"- {note}." for note in cell.notes)
    yield ""
    if tables:
        for table, below in made:
            yield from (*_drawn(table), "")
            yield from ([below, ""] if below else [])


def _legend(called: Mapping[str, str]) -> Iterator[str]:
    letters = {name: method for method, name in called.items() if name != code(method)}
    if letters:
        yield from (f"- {letter} is {code(method)}" for letter, method in letters.items())
        yield ""


def _fitting(methods: Sequence[str], build) -> tuple[dict[str, str], list[tuple[Table, str]]]:
    """Names of the methods, the long ones as letters, so that what is built with them fits; and what is built."""
    for longest in _LONGEST:
        letters = (
            letter for letter in (*ascii_uppercase, *(f"{a}{b}" for a in ascii_uppercase for b in ascii_uppercase))
        )
        called = {m: code(m) if columns(m) <= longest and "|" not in m else next(letters) for m in methods}
        made = build(called)
        if all(columns(line) <= WIDTH for table, _ in made for line in _drawn(table)):
            break
    return called, made


def _tables(cell: Cell, called: Mapping[str, str]) -> list[tuple[Table, str]]:
    """Every table of a cell, and what stands below it."""
    rows, others = cell.rows, [row for row in cell.rows if row.method != cell.baseline]
    baseline = called[cell.baseline]
    scores = [[called[r.method], str(len(r.values)), *_shown(cell, r.mean, r.sd), *_cost(r)] for r in rows]
    made = [
        (
            (("method", "n", "mean", "SD", "seconds", "cost"), scores),
            f"Seconds are those of training; cost is their ratio to those of {baseline} with the same seed.",
        )
    ]
    gains = [
        [called[r.method], *_gain(cell, r), f"{r.gain.wins} of {r.gain.n}" + _ties(r.gain.ties)]
        for r in others
        if r.gain is not None
    ]
    if gains:
        made.append(((("method", "gain", "95 % interval", "wins"), gains), f"Gains are over {baseline}."))
    tests = [
        [called[r.method], f"{r.gain.p:.2g}", _short(r.corrected, ".2g"), *_power(cell, r)]
        for r in others
        if r.gain is not None and r.gain.n > 1
    ]
    if tests:
        pairs = min(r.gain.n for r in others if r.gain is not None and r.gain.n > 1)
        cannot = f" With {pairs} pairs it cannot reach .05: its smallest is {2 / 2**pairs:.2g}."
        below = (
            "p is that of all changes of sign of the paired differences, Holm's is corrected for all methods."
            f'{cannot if pairs < FEWEST_PAIRS else ""} These seeds detect a gain as large as "could see", and it takes'
            ' "needs" of them to detect the gain that was seen, both with 80 % power at .05.'
        )
        made.append(((("method", "p", "Holm", "could see", "needs"), tests), below))
    wider = [
        [called[r.method], *_interval(cell, r.gain_on_tests_like_it), str(r.gain_on_tests_like_it.units)]
        for r in others
        if r.gain_on_tests_like_it is not None
    ]
    if wider:
        header = ("method", "gain", "95 % interval", "examples")
        made.append(((header, wider), "The same gains for test sets like this one: over seeds and examples."))
    trials = [
        [called[r.method], str(r.trials), *_shown(cell, r.held_back, r.mean), _signed(cell, r.gap)]
        for r in rows
        if r.trials is not None
    ]
    if trials:
        header = ("method", "trials", "held back", "final", "gap")
        below = "Trials chose each method's arguments on held-back training data; the gap is what was lost from there."
        made.append(((header, trials), below))
    return made


def _across(verdict: Verdict) -> Iterator[str]:
    across = verdict.across
    assert across is not None
    percent = all(cell.scale == 100 for cell in verdict.cells)
    methods = [*across.gains, verdict.baseline]
    called, made = _fitting(methods, lambda names: _tables_across(across, names, verdict.baseline, percent))
    for told in sentences_across(across, called, verdict.baseline, percent):
        yield f"- {told}"
    yield ""
    yield from _legend(called)
    for table, below in made:
        yield from (*_drawn(table), "", below, "")


def _tables_across(across: Across, called: Mapping[str, str], baseline: str, percent: bool) -> list[tuple[Table, str]]:
    digits = 2 if percent else 4
    gains = []
    for method, name in called.items():
        rank = f"{across.mean_ranks[method]:.1f}"
        if method == baseline:
            gains.append([name, "", "", "", rank])
        else:
            one = across.gains[method]
            interval = f"{one.points.low:+.{digits}f} to {one.points.high:+.{digits}f}"
            gains.append([name, f"{one.points.mean:+.{digits}f}", interval, f"{one.improvement:.2f}", rank])
    friedman = "" if across.friedman_p is None else f" All alike: p is {across.friedman_p:.2g} (Friedman)."
    below = (
        f"Interquartile mean of the gains over {called[baseline]}; the probability that a run is better than one of"
    )
    below += f" {called[baseline]}; mean rank, 1 is best.{friedman}"
    made: list[tuple[Table, str]] = [((("method", "gain", "95 % interval", "better", "rank"), gains), below)]
    scaled = {method: one for method, one in across.gains.items() if one.profile is not None}
    if scaled:
        at = [across.grid.index(tau) for tau in _TAUS if tau in across.grid]
        header = ("method", *(f"> {across.grid[index]:g}" for index in at))
        shares = [
            [called[m], *(f"{one.profile[index]:.2f}" for index in at)] for m, one in scaled.items() if one.profile
        ]
        below = f"Share of runs that gain more than so many standard deviations of {called[baseline]} over seeds."
        made.append(((header, shares), below))
    return made


def _estimands(verdict: Verdict) -> Iterator[str]:
    wider = any(row.gain_on_tests_like_it is not None for cell in verdict.cells for row in cell.rows)
    yield " ".join([OVER_SEEDS, *([OVER_EXAMPLES] if wider else []), *([OVER_CELLS] if verdict.across else [])])


def _drawn(table: Table) -> list[str]:
    header, rows = table
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


def _shown(cell: Cell, *values: float | None) -> list[str]:
    return [_number(cell, value) for value in values]


def _signed(cell: Cell, value: float | None) -> str:
    return _short(None if value is None else cell.scale * value, "+.2f" if cell.scale == 100 else "+.4f")


def _interval(cell: Cell, gain) -> list[str]:
    between = "-" if gain.low is None else f"{_signed(cell, gain.low)} to {_signed(cell, gain.high)}"
    return [_signed(cell, gain.mean), between]


def _gain(cell: Cell, row: Row) -> list[str]:
    assert row.gain is not None
    return _interval(cell, row.gain)


def _ties(ties: int) -> str:
    return f", {ties} tied" if ties else ""


def _cost(row: Row) -> list[str]:
    return [_short(row.seconds, ".0f"), "-" if row.cost is None else f"{row.cost:.2f}x"]


def _power(cell: Cell, row: Row) -> list[str]:
    assert row.gain is not None
    needed = row.gain.seeds_needed
    return [_number(cell, row.gain.detectable), "-" if needed is None else f"{needed:,}"]

"""What a comparison found, in a plain sentence or two for each method, and what its intervals are intervals of."""

from __future__ import annotations

from collections.abc import Mapping

from hf_rat.experiments.across import Across
from hf_rat.experiments.paired import Difference
from hf_rat.experiments.records import bare
from hf_rat.experiments.verdict import Cell, Row, Verdict

OVER_SEEDS = (
    "Intervals of a gain are of the mean difference over all seeds that could be drawn, for this very test set "
    "(Student's t over the seeds that both have)."
)
OVER_EXAMPLES = (
    "Those for test sets like this one are of the mean difference over all seeds and all examples that could be drawn "
    "as these were; they are wider."
)
OVER_CELLS = (
    "Intervals over cells are of the interquartile mean of all runs' gains, over all seeds that could be drawn, for "
    "these very data sets and models (Student's t, its error from drawing the seeds of each cell again)."
)


def score_of(cell: Cell) -> str:
    """The score in words: accuracy of the test split in percent."""
    split, _, score = cell.score.partition("_")
    unit = " in percent, gains in points" if cell.scale == 100 else ""
    better = "; lower is better, and a gain is what it falls" if cell.lower_is_better else ""
    return f"{score} of the {'test' if split == 'test' else 'validation'} split{unit}{better}"


def direction(cell: Cell, row: Row) -> int:
    """What is settled of a method: 1 that it is better than the baseline, -1 that it is worse, 0 nothing.

    The interval of its gain must lie on one side of zero; and where there are pairs enough for a permutation test to
    confirm that, it must.
    """
    gain = row.gain
    if gain is None or gain.low is None or gain.high is None or gain.sd == 0 or gain.low <= 0 <= gain.high:
        return 0
    if not _too_few(cell, gain) and (row.corrected is None or row.corrected >= 0.05):
        return 0
    return 1 if gain.low > 0 else -1


def headlines(verdict: Verdict, called: Mapping[str, str]) -> dict[str, str]:
    """The whole verdict in a sentence for each cell, or in one where it is given over all cells.

    Args:
        verdict: any.
        called: method -> what the text calls it.

    Returns:
        Name of the cell -> sentence; the name is empty for the sentence over all cells.
    """
    if verdict.across is not None:
        found = {
            method: 0 if (m := one.points).low is None or m.high is None else (m.low > 0) - (m.high < 0)
            for method, one in verdict.across.gains.items()
        }
        return {"": _headline(found, called, verdict.baseline)}
    told = {}
    for cell in verdict.cells:
        found = {row.method: direction(cell, row) for row in cell.rows if row.method != cell.baseline}
        told[cell.name] = _headline(found, called, cell.baseline)
    return told


def _headline(found: Mapping[str, int], called: Mapping[str, str], baseline: str) -> str:
    """Which methods are better, which are worse, and of which nothing is settled."""
    parts = []
    for sign, (one, many) in {1: ("gains", "gain"), -1: ("loses", "lose"), 0: ("", "")}.items():
        names = [called[method] for method, direction in found.items() if direction == sign]
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        if names and sign:
            over = "over" if sign > 0 else "against"
            parts.append(f"{listed} {many if len(names) > 1 else one} {over} {called[baseline]}")
        elif names:
            against = "" if parts else f" against {called[baseline]}"
            parts.append(f"nothing is settled for {listed}{against}")
    text = "; ".join(parts) or f"there is nothing to compare {called[baseline]} with"
    return f"{text[0].upper()}{text[1:]}."


def sentence(cell: Cell, row: Row, name: str, baseline: str) -> str:
    """The verdict on one method.

    Args:
        cell, row: the method's.
        name, baseline: as the text calls the method and the baseline.
    """
    gain, unit = row.gain, _unit(cell)
    if not row.values:
        runs = f"none of its {len(row.records)} runs has" if len(row.records) > 1 else "its one run has not"
        why = f"{runs} finished" if row.failed else f"no run of it has a finite {bare(cell.score)}"
        return f"Of {name} nothing is known: {why}."
    if gain is None:
        return f"Of {name} nothing is known: it shares no finished seed with {baseline}."
    if gain.low is None or gain.high is None or gain.detectable is None:
        difference = f"{_signed(gain.mean, cell)}{unit}"
        return f"Nothing is settled for {name}: one pair ({difference}) says nothing about other seeds."
    if gain.sd == 0:
        if gain.mean == 0:
            return f"Of {name} nothing is known: it scored exactly what {baseline} scored with each of {gain.n} seeds."
        difference = f"{_signed(gain.mean, cell)}{unit} with each of {gain.n} seeds"
        return f"Nothing is settled for {name}: {difference}, and what does not vary says nothing about other seeds."
    if gain.low > 0 or gain.high < 0:
        text = _found(cell, row, gain, name, baseline)
    else:
        text = (
            f"Nothing is settled for {name}: {_signed(gain.mean, cell)}{unit} ({_between(gain.low, gain.high, cell)});"
            f" {gain.n} seeds could only see {_plain(gain.detectable, cell)}{unit}{_needed(gain)}."
        )
    return text + _on_tests_like_it(cell, row)


def sentences_across(across: Across, called: Mapping[str, str], baseline: str, percent: bool) -> list[str]:
    """The verdict over all cells, a sentence a method.

    Args:
        across: the gains.
        called: method -> what the text calls it.
        baseline: the method that the others are compared with.
        percent: whether gains are in points.
    """
    unit, digits, baseline = " points" if percent else "", 1 if percent else 4, called[baseline]
    told = []
    for method, gains in across.gains.items():
        middle, name = gains.points, called[method]
        if middle.low is None or middle.high is None:
            found = f"Nothing is settled for {name}: {middle.mean:+.{digits}f}{unit}, from one seed in some cell"
        elif middle.low > 0 or middle.high < 0:
            low, high = sorted((abs(middle.low), abs(middle.high)))
            verb, to = ("gains", "over") if middle.low > 0 else ("loses", "against")
            found = (
                f"**{name} {verb}** {low:.{digits}f} to {high:.{digits}f}{unit} {to} {baseline} with 95 % confidence"
            )
        else:
            found = f"Nothing is settled for {name}: {middle.low:+.{digits}f} to {middle.high:+.{digits}f}{unit}"
        told.append(f"{found}; a run of it beats one of {baseline} with probability {gains.improvement:.2f}.")
    if across.incomplete:
        gone = "; ".join(f"{code(method)} on {', '.join(cells)}" for method, cells in across.incomplete.items())
        told.append(f"Left out, because they have no runs that the baseline has too: {gone}.")
    if not across.gains:
        told.append("No method has runs in every cell; `--alike NAME METHOD METHOD ...` puts several under one name.")
    return told


def code(text: str) -> str:
    """A word of a command line in Markdown; what may stand in it is anybody's."""
    text, ticks = " ".join(text.split()), "`"
    while ticks in text:
        ticks += "`"
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def lacks(row: Row) -> str:
    """Which seeds of a method do not count, and why; empty where all do."""
    if len(row.failed) == len(row.records):
        return "all seeds failed"
    parts = []
    for seeds, why in ((row.failed, "failed"), (row.missing, "not run"), (row.unscored, "without this score")):
        if seeds:
            parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} {why}")
    return "; ".join(parts)


def _found(cell: Cell, row: Row, gain: Difference, name: str, baseline: str) -> str:
    assert gain.low is not None
    assert gain.high is not None
    low, high = sorted((abs(gain.low), abs(gain.high)))
    amount = f"{_plain(low, cell)} to {_plain(high, cell)}"
    if cell.lower_is_better:
        verb, rest = "lowers" if gain.low > 0 else "raises", f"the {bare(cell.score)} by {amount} against {baseline}"
    else:
        verb, to = ("gains", "over") if gain.low > 0 else ("loses", "against")
        rest = f"{amount}{_unit(cell)} {to} {baseline}"
    methods = _tested(cell)
    family = f" of {methods} methods" if methods > 1 else ""
    p = f"p is {row.corrected:.2g}" + (f" after correction for {methods} methods" if methods > 1 else "")
    if direction(cell, row) == 0:
        return f"Nothing is settled for {name}: alone it {verb} {rest} with 95 % confidence, but {p}."
    if _too_few(cell, gain):
        p = f"alone; {gain.n} seeds are too few for a permutation test{family} to confirm it"
    return f"**{name} {verb}** {rest} with 95 % confidence ({p})."


def _tested(cell: Cell) -> int:
    return sum(other.corrected is not None for other in cell.rows)


def _too_few(cell: Cell, gain: Difference) -> bool:
    """Whether no permutation test of so few pairs could confirm a gain, after correction for all methods."""
    return _tested(cell) * gain.smallest_p >= 0.05


def _on_tests_like_it(cell: Cell, row: Row) -> str:
    wider = row.gain_on_tests_like_it
    if wider is None or wider.low is None or wider.high is None:
        return ""
    settled = "" if wider.low > 0 or wider.high < 0 else ", which settles nothing"
    return f" For test sets like this one: {_between(wider.low, wider.high, cell)}{_unit(cell)}{settled}."


def _needed(gain: Difference) -> str:
    if gain.seeds_needed is None:
        return ", and this difference is as good as none"
    return f", and it takes about {gain.seeds_needed:,} to see this difference"


def _unit(cell: Cell) -> str:
    return " points" if cell.scale == 100 else ""


def _digits(cell: Cell, *values: float) -> int:
    """One decimal of a point; two where a bound would else be shown as zero."""
    if cell.scale != 100:
        return 4
    return 1 if all(abs(value) >= 0.0005 or value == 0 for value in values) else 2


def _plain(value: float, cell: Cell) -> str:
    return f"{cell.scale * value:.{_digits(cell, value)}f}"


def _signed(value: float, cell: Cell) -> str:
    return f"{cell.scale * value:+.{_digits(cell, value)}f}"


def _between(low: float, high: float, cell: Cell) -> str:
    return f"{_signed(low, cell)} to {_signed(high, cell)}"

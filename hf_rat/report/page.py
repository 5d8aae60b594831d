"""The page: everything that was read, filled into the template, as one HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hf_rat.data.whole_files import write_whole
from hf_rat.experiments.records import Record, scores_in
from hf_rat.experiments.sentences import code
from hf_rat.experiments.tables import Table, estimands
from hf_rat.experiments.verdict import Verdict, judge
from hf_rat.report.analyses import study_of
from hf_rat.report.comparison import across_page, cell_pages, looks_of
from hf_rat.report.curves import learning_curves
from hf_rat.report.folders import Contents, SingleRun
from hf_rat.report.landscapes import landscape_of, plotly
from hf_rat.report.plots import MOST_POINTS, Look
from hf_rat.report.settings import settings, settings_of_run

_TITLES = {"robustness": "Robustness", "calibration": "Calibration", "gap": "Dropout's gap"}
_NOTES = {
    "robustness": "Areas are 95 % intervals over rows, taken as a sample of all rows that one could have drawn. A "
    "difference is paired: both models answered the same rows.",
    "calibration": "A mark is a bin of rows with like confidence. On the dashed line a model is as sure as it is "
    "right; below it, it is too sure.",
}
LARGEST = 8_000_000  # bytes of a page
_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")


def make_page(
    contents: Contents,
    records: Sequence[Record],
    title: str,
    told_by: str,
    baseline: str | None = None,
    score: str | None = None,
) -> str:
    """The HTML of a report.

    Args:
        contents: what was read.
        records: those of `contents`, with methods under one name if so asked.
        title: of the page.
        told_by: the command line of the report.
        baseline, score: as `judge` takes them.

    Raises:
        ValueError: baseline or score is not there, or a file is cut short.
    """
    verdict: Verdict | None = judge(records, baseline, score) if records else None
    studies = [study_of(one) for one in contents.analyses if one.kind != "landscape"]
    landscapes = [landscape_of(one) for one in contents.analyses if one.kind == "landscape"]
    environment = Environment(
        loader=PackageLoader("hf_rat.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": inline, "capitalize_first": lambda text: text[:1].upper() + text[1:]}
    return environment.get_template("report.html").render(
        title=title,
        version=version("hf-rat"),
        across=None if verdict is None else across_page(verdict),
        looks={} if verdict is None else looks_of(verdict),
        cells=[] if verdict is None else cell_pages(verdict),
        estimands="" if verdict is None else estimands(verdict),
        runs=_runs(contents.runs) if contents.runs else None,
        studies=studies,
        landscapes=landscapes,
        plotly=plotly() if any(one.surfaces for one in landscapes) else None,
        notes=_NOTES,
        titles=_TITLES,
        most_points=MOST_POINTS,
        settings=settings(contents, verdict, told_by),
    )


def title_of(folders: Sequence[Path]) -> str:
    """What the page is called where nobody says: the last parts of the folders' names."""
    names = ["/".join(folder.resolve().parts[-2:]).lstrip("/") for folder in folders]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def inline(text: str) -> Markup:
    """The Markdown of a sentence or of a cell of a table, which has words in bold and code, as HTML."""
    html, bold = Markup(), False
    for at, part in enumerate(_CODE.split(text)):
        if at % 3 == 2:
            padded = part[:1] == part[-1:] == " " and part.strip()
            html += Markup("<code>{}</code>").format(part[1:-1] if padded else part)
        elif at % 3 == 0:
            for number, piece in enumerate(part.split("**")):
                if number:
                    bold = not bold
                    html += Markup("<strong>" if bold else "</strong>")
                html += escape(piece)
    return html + Markup("</strong>" if bold else "")


def write_page(html: str, path: Path) -> None:
    """Write the page whole or not at all.

    Raises:
        ValueError: it is too large, or the file cannot be written.
    """
    content = html.encode()
    if len(content) > LARGEST:
        raise ValueError(
            f"the page would have {len(content) / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}: give fewer folders"
        )
    try:
        write_whole(path, content)
    except OSError as error:
        raise ValueError(f"--output {path} cannot be written ({error.strerror})") from None


def _runs(runs: Sequence[SingleRun]) -> dict[str, Any]:
    """Single runs: a table of their scores, their curves, what they were trained with."""
    looks = {run.name: Look.of(number) for number, run in enumerate(runs)}
    names = list(dict.fromkeys(name for run in runs for name in scores_in(run.results)))
    rows = [
        [
            code(run.name),
            *(_number(run.results.get(name)) for name in names),
            _number(run.results.get("train_runtime")),
        ]
        for run in runs
    ]
    logged = {run.name: [run.state["log_history"]] for run in runs if run.state.get("log_history")}
    return {
        "table": Table(["run", *names, "seconds"], rows, ""),
        "looks": looks,
        "curves": learning_curves(logged, looks),
        "settings": {run.name: settings_of_run(run) for run in runs},
    }


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "-"

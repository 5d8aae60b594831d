"""Write finished runs as one HTML page to share: the verdict, every seed, cost, learning curves, settings.

hf-rat report RUN [RUN ...] reads output folders of hf-rat compare, folders of single runs, and folders where hf-rat
analyze wrote robustness.json, calibration.json, gap.json or landscape.json. The page needs no network, and nothing is
trained for it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from hf_rat.cli._commands import Parser, add_verdict_flags
from hf_rat.finetuning.blame import reported

FILE_NAME = "report.html"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


def run(argv: Sequence[str]) -> None:
    """Write the page that the flags ask for.

    Raises:
        ValueError: a folder, the baseline or the score is not there, or the file cannot be written.
    """
    parser = Parser(prog="hf-rat report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a comparison, a run, an analysis")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"the page [{FILE_NAME} in RUN, if it is one]")
    parser.add_argument("--title", metavar="TEXT", help="of the page [the names of the folders]")
    add_verdict_flags(parser)
    parser.add_argument("--card", action="store_true", help="single runs' model cards show the PNGs in their folders")
    arguments = parser.parse_args(argv)
    if arguments.output is None and len(arguments.runs) > 1:
        raise ValueError("--output is missing: with several folders say where the page goes")
    output = arguments.output or arguments.runs[0] / FILE_NAME
    # What they need takes seconds to import.
    from hf_rat.experiments.records import alike, rows_alike
    from hf_rat.report.folders import look_into
    from hf_rat.report.page import make_page, title_of, write_page

    rows = rows_alike(arguments.alike)
    contents = look_into(arguments.runs)
    html = make_page(
        contents,
        alike(contents.records, rows),
        arguments.title or title_of(arguments.runs),
        shlex.join(["hf-rat", "report", *argv]),
        arguments.baseline,
        arguments.score,
    )
    write_page(html, output)
    if arguments.card:
        from hf_rat.report.cards import CARD, show_pictures

        for one in contents.runs:
            if show_pictures(one.folder):
                print(f"Written to {one.folder / CARD}")
    print(f"Written to {output} ({max(1, round(len(html.encode()) / 1000)):,} kB)")

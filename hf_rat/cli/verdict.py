"""Tell finished comparisons anew: what each method gains over a baseline, how sure that is, what it costs.

hf-rat verdict FOLDER [FOLDER ...] reads the runs in output folders of hf-rat compare and trains nothing. Several
folders are one data set or model each; from four on it also says what holds over all of them.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from hf_rat.cli._commands import Parser, add_verdict_flags
from hf_rat.experiments.records import alike, former, read, rows_alike
from hf_rat.experiments.telling import tell
from hf_rat.finetuning.blame import reported


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


def run(argv: Sequence[str]) -> None:
    """Tell what the flags name.

    Raises:
        ValueError: a folder, the baseline or the score is not there, or the files cannot be written.
    """
    parser = Parser(prog="hf-rat verdict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="output folder of hf-rat compare")
    parser.add_argument("--output_dir", type=Path, metavar="DIR", help="folder of the files [FOLDER, if it is one]")
    add_verdict_flags(parser)
    arguments = parser.parse_args(argv)
    if arguments.output_dir is None and len(arguments.folders) > 1:
        raise ValueError("--output_dir is missing: with several folders say where the files go")
    records = alike(read(arguments.folders), rows_alike(arguments.alike))
    commands = [one for told in former(arguments.folders) for one in _commands(told["command"])]
    tell(
        records,
        arguments.output_dir or arguments.folders[0],
        commands,
        arguments.baseline,
        arguments.score,
        shlex.join(["hf-rat", "verdict", *argv]),
    )


def _commands(told: str | list[str]) -> list[str]:
    return [told] if isinstance(told, str) else told

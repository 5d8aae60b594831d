"""Study trained models side by side: see what regularization did.

hf-rat analyze WHAT RUN [RUN ...] reads the folders of finished runs of hf-rat glue or textcls, asks their models about
the same rows, and writes WHAT.json and pictures into --output_dir. The data are those that the runs were trained on,
unless flags name others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rat.cli import _calibration, _gap, _landscape, _robustness, _sharpness
from hf_rat.cli._commands import Parser
from hf_rat.finetuning.blame import reported


@dataclass(frozen=True)
class Study:
    """A row of `STUDIES`.

    Args:
        summary: one line of help.
        add_flags: adds the flags of its own to a parser.
        run: (subjects, flags) -> what goes into WHAT.json, file name -> PNG, and what is printed. The folder
            `flags.output_dir` is there.
    """

    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[list[Any], argparse.Namespace], tuple[dict[str, Any], dict[str, bytes], str]]


# Nothing heavy is imported by the modules named here, so that help is quick: their functions do that.
STUDIES = {
    "calibration": Study(_calibration.SUMMARY, _calibration.add_flags, _calibration.run),
    "gap": Study(_gap.SUMMARY, _gap.add_flags, _gap.run),
    "robustness": Study(_robustness.SUMMARY, _robustness.add_flags, _robustness.run),
    "landscape": Study(_landscape.SUMMARY, _landscape.add_flags, _landscape.run),
    "sharpness": Study(_sharpness.SUMMARY, _sharpness.add_flags, _sharpness.run),
}
_DATA = {
    "task_name": "a GLUE task",
    "dataset_name": "a data set of hf-rat textcls, any on the Hub, or a folder",
    "dataset_config_name": "its configuration",
    "data_dir": "as of hf-rat glue",
    "train_file": "with --validation_file or --test_file: files",
    "validation_file": "of rows with labels",
    "test_file": "likewise, with --split test",
    "text_column_names": "one or two columns, comma separated",
    "label_column_name": "the column of the labels",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


def run(argv: Sequence[str]) -> None:
    """Make the study that the words name.

    Raises:
        ValueError: a folder is no run, the runs do not fit each other or the data, or a flag has a wrong value.
    """
    asked = _parser().parse_args(argv)
    for name in ("max_samples", "batch_size"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: at least 1 is needed")
    from hf_rat.analysis.subject import read_subjects
    from hf_rat.data.whole_files import write_json
    from hf_rat.finetuning.checkpoints import remove_if_empty, require_writable
    from hf_rat.finetuning.processes import say

    given = {name: value for name in (*_DATA, "max_seq_length") if (value := getattr(asked, name)) is not None}
    existed = asked.output_dir.exists()
    require_writable(asked.output_dir)
    try:
        subjects = read_subjects(asked.runs, given, asked.split, asked.max_samples, asked.batch_size)
        found, pictures, told = STUDIES[asked.what].run(subjects, asked)
        about = {
            "runs": {subject.name: str(subject.folder) for subject in subjects},
            "rows": len(subjects[0].rows),
            "split": asked.split,
        }
        try:
            write_json(asked.output_dir / f"{asked.what}.json", {**about, **found})
            for name, picture in pictures.items():
                (asked.output_dir / name).write_bytes(picture)
        except OSError as error:
            raise ValueError(
                f"--output_dir {str(asked.output_dir)!r} cannot be written ({error.strerror or error})"
            ) from error
    except (Exception, KeyboardInterrupt):
        if not existed:
            remove_if_empty(asked.output_dir)
        raise
    say(f"{told}\nWritten to {asked.output_dir}: {', '.join(sorted([f'{asked.what}.json', *pictures]))}")


def _parser() -> Parser:
    parser = Parser(prog="hf-rat analyze", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, study in STUDIES.items():
        own = studies.add_parser(name, help=study.summary, description=f"{study.summary}.")
        own.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of its checkpoint")
        own.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="folder of the results")
        own.add_argument("--split", choices=("validation", "test", "train"), default="validation", help="[validation]")
        own.add_argument("--max_samples", type=int, metavar="N", help="draw N rows, by a fixed seed [all]")
        own.add_argument("--batch_size", type=int, default=32, metavar="N", help="rows of a batch [32]")
        own.add_argument("--max_seq_length", type=int, metavar="N", help="tokens of a text [as it was trained]")
        study.add_flags(own)
        data = own.add_argument_group("data", "without these, the data that the first run was trained on")
        for flag, text in _DATA.items():
            data.add_argument(f"--{flag}", metavar="TEXT", help=text)
    return parser

"""Check a folder or zip of predictions for GLUE or CLUE, and make the zip of a complete folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_rat.data.submission import pack, problems
from hf_rat.finetuning.blame import reported


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


def run(argv: Sequence[str]) -> None:
    """Check what is named.

    Raises:
        ValueError: what is wrong with it.
    """
    if argv[:1] in (["-h"], ["--help"]):
        print(f"usage: hf-rat check-submission FOLDER_OR_ZIP\n\n{__doc__}")
        return
    if len(argv) != 1:
        raise ValueError(f"hf-rat check-submission takes one folder or zip, it was given {len(argv)} arguments")
    path = Path(argv[0])
    wrong = problems(path)
    if wrong:
        raise ValueError(f"submission {argv[0]!r}: {'; '.join(wrong)}")
    print(f"Good: {pack(path) if path.is_dir() else path}")

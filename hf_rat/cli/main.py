"""`hf-rat COMMAND ...`: the scripts from an installed package."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_rat.finetuning.flags import reported

_COMMANDS = {
    "glue": "fine-tune on a GLUE task, a data set of the Hub or files of your own; without data, a small example",
    "textcls": "train a small model on texts with labels, or fine-tune any; without data, a small example",
    "compare": "run several regularizers over several seeds of one task, and tabulate mean and standard deviation",
    "check-submission": "check a folder or zip of predictions for GLUE or CLUE, and make the zip of a complete folder",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status, 2 after an error of the user's."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, _COMMANDS))
        lines = [f"  {name.ljust(width)}  {text}" for name, text in _COMMANDS.items()]
        print("\n".join(["usage: hf-rat COMMAND ... (--help after a command lists its flags)", "", *lines]))
        return 0
    if argv[0] == "glue":
        from hf_rat.cli.glue import main as glue  # importing it takes seconds, and the help needs none of it

        return glue(argv[1:])
    if argv[0] == "textcls":
        from hf_rat.cli.textcls import main as textcls

        return textcls(argv[1:])
    if argv[0] == "compare":
        from hf_rat.experiments.compare import main as compare

        return compare(argv[1:])
    if argv[0] == "check-submission":
        return _check_submission(argv[1:])
    near = difflib.get_close_matches(argv[0], _COMMANDS, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    print(f"error: {argv[0]!r} is not a command of hf-rat{hint}; there are: {', '.join(_COMMANDS)}", file=sys.stderr)
    return 2


def _check_submission(argv: list[str]) -> int:
    from hf_rat.data.submission import pack, problems

    if argv[:1] in (["-h"], ["--help"]):
        print(f"usage: hf-rat check-submission FOLDER_OR_ZIP\n\n{_COMMANDS['check-submission']}")
        return 0

    def check(words: list[str]) -> None:
        if len(words) != 1:
            raise ValueError(f"hf-rat check-submission takes one folder or zip, it was given {len(words)} arguments")
        path = Path(words[0])
        wrong = problems(path)
        if wrong:
            raise ValueError(f"submission {words[0]!r}: {'; '.join(wrong)}")
        print(f"Good: {pack(path) if path.is_dir() else path}")

    return reported(check, argv)


if __name__ == "__main__":
    sys.exit(main())

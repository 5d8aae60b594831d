"""`hf-rat COMMAND ...`. Help and what is misspelt are answered from the text of modules, without importing any."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from hf_rat import __version__
from hf_rat.cli._commands import Command, commands
from hf_rat.finetuning.blame import reported


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status, 2 after an error of the user's.

    Args:
        argv: the command line without the program; None takes the process's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, commands()))
        lines = [f"  {name.ljust(width)}  {command.summary}" for name, command in commands().items()]
        usage = "usage: hf-rat COMMAND ... (--help after a command explains it), or hf-rat --version"
        print("\n".join([usage, "", *lines]))
        return 0
    if words[0] == "--version":
        print(f"hf-rat {__version__}")
        return 0
    command = commands().get(words[0])
    if command is None:
        near = difflib.get_close_matches(words[0], commands(), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        known = ", ".join(commands())
        print(f"error: {words[0]!r} is not a command of hf-rat{hint}; there are: {known}", file=sys.stderr)
        return 2
    return _run(command, words[1:])


def _run(command: Command, words: list[str]) -> int:
    if command.dataclasses and {"-h", "--help", "--help-all"} & set(words):
        print(command.help(everything="--help-all" in words))
        return 0
    status = reported(command.check, words)
    return status or int(import_module(command.module).main(words))


if __name__ == "__main__":
    sys.exit(main())

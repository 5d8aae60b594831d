"""List the methods, or print the card of one: `hf-rat methods rat`."""

from __future__ import annotations

from collections.abc import Sequence

from hf_rat.cli._commands import methods, require_methods
from hf_rat.cli._source import cards
from hf_rat.finetuning.blame import reported


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


def run(argv: Sequence[str]) -> None:
    """Print what is asked for.

    Raises:
        ValueError: there is no such method.
    """
    if argv[:1] in (["-h"], ["--help"]):
        print(f"usage: hf-rat methods [NAME ...]\n\n{__doc__}")
        return
    if not argv:
        print(f"{methods()}\n\nhf-rat methods NAME prints the card of one.")
    for name in argv:
        if not name.isidentifier():
            raise ValueError(f"hf-rat methods takes names of methods, it was given {name!r}")
        require_methods(name, "hf-rat methods")
        card = cards()[name]
        shown = ", ".join(f"{argument}={default!r}" for argument, default in card.arguments.items())
        print(f"{name}({shown})\n\n{card.text}\n")

"""Run several regularizers over several seeds of one task, and tabulate mean and standard deviation."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hf_rat.cli._commands import commands, methods, require_methods
from hf_rat.experiments.compare import compare
from hf_rat.experiments.experiment import Experiment
from hf_rat.experiments.method import Method
from hf_rat.experiments.processes import Processes
from hf_rat.finetuning.blame import reported

# Flags that every run is given by this command, and that may therefore not stand after `--`.
OWN_FLAGS = ("--reg", "--seed", "--output_dir")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's or when a run failed."""
    return reported(run, argv)


def run(argv: Sequence[str]) -> None:
    """Make the comparison that the flags describe.

    Raises:
        ValueError: bad input, or some runs failed.
    """
    experiment = parse(argv)
    command = commands()[experiment.base[0]]
    processes = Processes("hf_rat.cli.main", (command.module, "matplotlib.figure"), experiment.jobs)
    compare(experiment, shlex.join(["hf-rat", "compare", *argv]), processes)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(argv: Sequence[str]) -> Experiment:
    """What the command line asks for.

    Raises:
        ValueError: something is missing or repeats, or a flag of ours stands after `--`.
    """
    own, base = list(argv), ["glue"]
    if "--" in own:
        at = own.index("--")
        own, base = own[:at], own[at + 1 :]
    parser = _Parser(
        prog="hf-rat compare",
        usage="%(prog)s --methods M [M ...] --seeds N [N ...] --output_dir DIR\n    [-- glue ...]",
        description="Methods x seeds on one task, with a table of means and standard deviations.\n"
        "A second call makes the runs that are missing. What follows -- is the command\n"
        "of each run, whose flags are in hf-rat glue --help and hf-rat textcls --help.",
        epilog=f"methods:\n{methods()}\n\nhf-rat methods NAME prints the card of one.".replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shape = 'as for --reg, each with flags of its own if need be, as "rat --learning_rate 2e-5"'
    parser.add_argument("--methods", nargs="+", required=True, type=Method, help=shape)
    parser.add_argument("--seeds", nargs="+", required=True, type=int, help="seeds that every method runs with")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the runs and of the table")
    arguments = parser.parse_args(own)
    slugs = [method.slug for method in arguments.methods]
    for method in arguments.methods:
        if not method.expression:
            raise ValueError(f"--methods: {method.entry!r} names no regularizer")
        if slugs.count(method.slug) > 1:
            raise ValueError(f"--methods: {method.entry!r} and another one would share the folder {method.slug!r}")
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise ValueError(f"--seeds: {' '.join(map(str, arguments.seeds))} holds a seed twice")
    for method in arguments.methods:
        require_methods(method.expression, "--methods")
    for flag in [*base, *(flag for method in arguments.methods for flag in method.flags)]:
        if flag.partition("=")[0] in OWN_FLAGS:
            raise ValueError(f"{flag} is set by compare for every run; say --methods, --seeds, --output_dir before --")
    if not base or base[0].startswith("-"):
        raise ValueError(f"{shlex.join(['--', *base])!r}: -- takes an hf-rat command, as in: -- glue --task_name rte")
    command = commands().get(base[0])
    if command is None or not command.dataclasses:
        trains = " or ".join(name for name, command in commands().items() if command.dataclasses)
        raise ValueError(f"-- takes {trains}, it was given {base[0]!r}")
    for words in (base[1:], *(method.flags for method in arguments.methods)):
        command.check(words)
    return Experiment(tuple(arguments.methods), tuple(arguments.seeds), arguments.output_dir, tuple(base))

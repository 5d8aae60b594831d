"""Run several regularizers over seeds, data sets and models, and say what came out.

hf-rat compare EXPERIMENT.yaml, or flags, which win over the file:
hf-rat compare --methods plain rat --seeds 1 2 3 --output_dir out/rte -- glue --task_name rte ...
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rat.cli._commands import Command, Parser, commands, methods, require_methods
from hf_rat.cli._source import read
from hf_rat.experiments.choosing import require_choosing, require_regularizers
from hf_rat.experiments.compare import compare
from hf_rat.experiments.experiment import Cell, Experiment
from hf_rat.experiments.experiment_file import read_experiment
from hf_rat.experiments.method import Method
from hf_rat.experiments.processes import Processes
from hf_rat.experiments.spaces import joined, samples
from hf_rat.experiments.words import halves, slug, value_of
from hf_rat.finetuning.blame import reported

# Flags that every run is given by this command, and that may therefore stand nowhere else.
OWN_FLAGS = ("reg", "seed", "output_dir")
RACE = 2  # methods beside the baseline that a race leaves, if it is not said
# command -> the flag that names a data set.
DATASETS = {
    "glue": "task_name",
    "lm": "dataset_name",
    "ner": "dataset_name",
    "textcls": "dataset_name",
    "mnist": "side",
    "temporal-order": "length",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's or when a run failed."""
    return reported(run, argv)


def run(argv: Sequence[str]) -> None:
    """Make the comparison that the flags describe.

    Raises:
        ValueError: bad input, or some runs failed.
    """
    experiment = parse(argv)
    modules = [commands()[name].module for name in experiment.commands]
    processes = Processes("hf_rat.cli.main", (*modules, "hf_rat.experiments.preload"), experiment.jobs)
    require_regularizers(experiment)  # while the processes' imports go on
    compare(experiment, shlex.join(["hf-rat", "compare", *argv]), processes)


def _parser() -> Parser:
    parser = Parser(
        prog="hf-rat compare",
        usage="%(prog)s [EXPERIMENT.yaml] [--methods M ...] [--seeds N ...]\n"
        "    [--output_dir DIR] [--models M ...] [--datasets D ...] [--jobs N]\n"
        "    [--baseline M] [--score NAME] [--trials N] [--race [K]] [--controls]\n"
        "    [-- glue ...]",
        description="Methods x data sets x models x seeds through the same code as hf-rat glue,\n"
        "textcls, ner, lm and more. A second call makes the runs that are missing. What\n"
        "follows -- is the command of each run, whose flags are in hf-rat glue --help and\n"
        "those of the others; after a file, its flags are added to those of the file, and\n"
        "win.",
        epilog=f"methods:\n{methods()}\n\nhf-rat methods NAME prints the card of one.".replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    own = 'each with flags of its own if need be, as "{}"'
    add = parser.add_argument
    add("--methods", nargs="+", help="as for --reg, " + own.format("rat --learning_rate 2e-5"))
    add("--models", nargs="+", help="to run each with, " + own.format("bilstm --hidden_size 64"))
    add(
        "--datasets",
        nargs="+",
        help="tasks (glue) or data sets (textcls, ner, lm), " + own.format("rte --max_seq_length 256"),
    )
    add("--seeds", nargs="+", type=int, help="seeds that every method runs with")
    add("--output_dir", help="folder of the runs and of the tables")
    add("--jobs", type=int, help="runs at a time [1]; with several GPUs each has one of its own")
    add("--baseline", help="the method that others are compared with [plain, else the first]")
    add("--score", help="the score that counts, as accuracy [the first of a run]")
    add("--trials", type=int, help='of each method, where values are ranges, as "fgm(epsilon={0.1..1 log})"')
    add(
        "--race",
        nargs="?",
        const=RACE,
        type=int,
        metavar="K",
        help="drop the worse half of the methods after few cells and seeds, and again, until K are left beside the "
        f"baseline [{RACE}]",
    )
    add(
        "--controls",
        action="store_true",
        help="add two rows: plain for the time of the dearest method, and with its epochs chosen",
    )
    return parser


def parse(argv: Sequence[str]) -> Experiment:
    """What a command line asks for.

    Raises:
        ValueError: something is missing or repeats, or a flag of ours stands where it has no place.
    """
    own, after = list(argv), None
    if "--" in own:
        at = own.index("--")
        own, after = own[:at], own[at + 1 :]
    asked: dict[str, Any] = {}
    if own and Path(own[0]).suffix in (".yaml", ".yml"):
        asked = read_experiment(Path(own.pop(0)))
    asked |= vars(_parser().parse_args(own))
    for name in ("methods", "seeds", "output_dir"):
        if name not in asked:
            raise ValueError(f"--{name} is missing: give it, or {name}: in a file")
    for name in ("jobs", "trials"):
        if asked.get(name, 1) < 1:
            raise ValueError(f"--{name} {asked[name]}: at least 1 is needed")
    seeds = asked["seeds"]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds: {' '.join(map(str, seeds))} holds a seed twice")
    base = _base(asked, after)
    cells = _cells(asked, base)
    names = dict.fromkeys(cell.command or base[0] for cell in cells)
    used = [_command(name, "cells: command:") for name in names]
    for name in ("methods", "models", "datasets"):
        _require_entries(name, asked.get(name, ()), used)
    for entry in asked["methods"]:
        for (expression,) in samples([halves(entry, "--methods")[0]], "--methods"):
            require_methods(expression, "--methods")
    _require_flags(base[1:], used)
    for cell in cells:
        _require_flags(cell.flags, [_command(cell.command or base[0], "cells: command:")])
    baseline = asked.get("baseline")
    if baseline is not None and baseline not in asked["methods"]:
        near = difflib.get_close_matches(baseline, asked["methods"], n=1)
        there = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(asked['methods'])}"
        raise ValueError(f"--baseline {baseline!r} is none of --methods; {there}")
    optional = {name: asked[name] for name in ("score", "jobs", "trials", "race", "controls") if name in asked}
    experiment = Experiment(
        tuple(map(Method, asked["methods"])),
        tuple(seeds),
        Path(asked["output_dir"]),
        tuple(base),
        tuple(cells),
        baseline,
        **optional,
    )
    require_choosing(experiment)
    return experiment


def _base(asked: Mapping[str, Any], after: Sequence[str] | None) -> list[str]:
    """The command of every run: the file's, and what follows ``--``."""
    name, words = asked.get("command"), joined(after or ())
    if words and not words[0].startswith("-"):
        given = words.pop(0)
        if name not in (None, given):
            raise ValueError(f"-- {given}: the file's command is {name}")
        name = given
    elif after is not None and name is None:
        raise ValueError(f"{shlex.join(['--', *words])!r}: -- takes an hf-rat command, as in: -- glue --task_name rte")
    name = name or "glue"
    _command(name, "--" if after else "command:")
    return [name, *asked.get("flags", ()), *words]


def _command(name: str, given_to: str) -> Command:
    """The command of a run.

    Raises:
        ValueError: it trains nothing.
    """
    command = commands().get(name)
    if command is None or not command.dataclasses:
        trains = " or ".join(name for name, command in commands().items() if command.dataclasses)
        raise ValueError(f"{given_to} takes {trains}, it was given {name!r}")
    return command


def _require_flags(words: Sequence[str], used: Sequence[Command]) -> None:
    """Refuse flags that a command has not, and those that this command sets."""
    for name in OWN_FLAGS:
        if value_of(words, name) is not None:
            word = next(word for word in words if word.startswith("--") and value_of([word], name) is not None)
            raise ValueError(f"{word} is set by compare for every run; say --methods, --seeds, --output_dir instead")
    for filled in samples(words, "the flags"):
        for command in used:
            command.check(filled)


def _require_entries(name: str, entries: Sequence[str], used: Sequence[Command]) -> None:
    """Refuse entries that name nothing, that would share a folder, or whose flags are wrong."""
    slugs = [slug(entry) for entry in entries]
    for entry in entries:
        named, flags = halves(entry, f"--{name}")
        if not named or not slug(entry):
            raise ValueError(f"--{name}: {entry!r} names {'no regularizer' if name == 'methods' else 'nothing'}")
        if slugs.count(slug(entry)) > 1:
            raise ValueError(f"--{name}: {entry!r} and another one would share the folder {slug(entry)!r}")
        _require_flags(flags, used)


def _cells(asked: Mapping[str, Any], base: Sequence[str]) -> list[Cell]:
    """The cells of the file, or every data set with every model, and the flags that name them."""
    if "cells" in asked:
        for name in ("datasets", "models"):
            if name in asked:
                raise ValueError(f"{name} and cells were given: cells name both, keep one of them")
        return _own_cells(asked["cells"])
    command, words = base[0], base[1:]
    cells = []
    axes = [(asked.get(name) or (None,)) for name in ("datasets", "models")]
    for dataset, model in itertools.product(*axes):
        flags: list[str] = []
        for axis, entry in (("datasets", dataset), ("models", model)):
            if entry is None:
                continue
            named, own = halves(entry, f"--{axis}")
            flag = DATASETS[command] if axis == "datasets" else _model_flag(command, named)
            if flag not in commands()[command].flags:
                raise ValueError(f"--{axis} {entry!r}: hf-rat {command} has no --{flag}")
            if value_of(words, flag) is not None:
                raise ValueError(f"--{flag} {value_of(words, flag)} and --{axis} {entry!r}: keep one of them")
            flags += [f"--{flag}", named, *own]
        cells.append(Cell(dataset, model, tuple(flags)))
    return cells


def _own_cells(given: Sequence[tuple[str, str | None, list[str]]]) -> list[Cell]:
    slugs = [slug(name) for name, _, _ in given]
    for name, _, _ in given:
        if not slug(name) or slugs.count(slug(name)) > 1:
            raise ValueError(f"cells: {name!r} {'names no folder' if not slug(name) else 'has the folder of another'}")
    return [Cell(name, None, tuple(words), command) for name, command, words in given]


def _model_flag(command: str, model: str) -> str:
    companion = "model" in commands()[command].flags and model in read("hf_rat.models").keys_of("COMPANIONS")
    return "model" if companion else "model_name_or_path"

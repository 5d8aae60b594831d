"""Many nearly equal commands as a few lines of bash that make exactly them."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence


def shortened(commands: Sequence[tuple[str, int, str]]) -> list[str]:
    """Lines of bash: a function with the flags that all commands share, called with those that they do not.

    Args:
        commands: (method, seed, command as one types it). The runs of one method that differ in their seed alone
            become one line of a loop.
    """
    words = {(method, seed): shlex.split(command) for method, seed, command in commands}
    shared = _shared(list(words.values()))
    if len(commands) < 2 or not shared:
        return [command for _, _, command in commands]
    loops: dict[tuple[int, ...], list[str]] = {}
    single: list[str] = []
    for method in dict.fromkeys(method for method, _, _ in commands):
        own = {seed: command[len(shared) :] for (name, seed), command in words.items() if name == method}
        patterns = {_pattern(command, seed) for seed, command in own.items()}
        if len(own) > 1 and len(patterns) == 1:
            loops.setdefault(tuple(own), []).append(f"    run {patterns.pop()}")
        else:
            single += [f"run {shlex.join(command)}" for command in own.values()]
    lines = ["run() {", f'    {shlex.join(shared)} "$@"', "}"]
    for seeds, calls in loops.items():
        lines += [f"for seed in {' '.join(map(str, seeds))}; do", *calls, "done"]
    return lines + single


def _shared(commands: Sequence[Sequence[str]]) -> list[str]:
    """The words that all commands begin with; no flag at their end, whose value may differ."""
    shared = [same[0] for same in itertools.takewhile(lambda same: len(set(same)) == 1, zip(*commands, strict=False))]
    while shared and shared[-1].startswith("--"):
        shared.pop()
    return shared


def _pattern(words: Sequence[str], seed: int) -> str:
    """The words as one types them, with $seed where the seed and the run's folder name it."""
    shown, number = [], str(seed)
    for before, word in zip(["", *words], words, strict=False):
        if before == "--seed" and word == number:
            shown.append("$seed")
        elif before == "--output_dir" and word.endswith(f"seed-{number}"):
            stem = word.removesuffix(number)
            shown.append(f"{shlex.quote(stem)}$seed")
        else:
            shown.append(shlex.quote(word))
    return " ".join(shown)

"""Tell a comparison: its verdict on the terminal, and in files that a paper, a program and a reader take."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_rat.data.whole_files import write_whole
from hf_rat.experiments.command_lines import shortened
from hf_rat.experiments.exports import as_csv, as_latex, everything
from hf_rat.experiments.pictures import picture_of_cost, picture_of_seeds
from hf_rat.experiments.records import Record
from hf_rat.experiments.tables import markdown, wrapped
from hf_rat.experiments.verdict import Verdict, judge


def tell(
    records: Sequence[Record],
    output: Path,
    commands: Sequence[str],
    baseline: str | None = None,
    score: str | None = None,
    told_by: str | None = None,
) -> Verdict:
    """Print the verdict, then write results.json, table.csv, table.tex, table.md, seeds.png and cost.png.

    Args:
        records: of all methods, seeds and cells, the rows in this order.
        output: folder of the files, made if need be.
        commands: the command lines of the comparisons, as one typed them.
        baseline: a method; None takes plain where every cell has it, else the first.
        score: a name without eval_ or test_; None takes each cell's first score that is no loss.
        told_by: the command line that tells it anew, if the comparison itself does not.

    Raises:
        ValueError: baseline or score is not there, or a file cannot be written; what was there before is still there.
    """
    verdict = judge(records, baseline, score)
    print(wrapped(markdown(verdict, tables=False)), flush=True)  # before the files, which a full disk may refuse
    _write(output, _files(verdict, records, commands, told_by))
    return verdict


def _files(
    verdict: Verdict, records: Sequence[Record], commands: Sequence[str], told_by: str | None
) -> dict[str, Callable[[], bytes]]:
    """Name -> what makes the content, in the order of writing."""
    versions = versions_of(records)
    value: dict[str, Any] = {
        "command": commands[0] if len(commands) == 1 else list(commands),
        "told_by": told_by,
        "told_with": version("hf-rat"),
        "versions": versions,
        **everything(verdict),
    }
    text = markdown(verdict) + _provenance(verdict, commands, told_by, versions, value["methods"])
    return {
        "results.json": lambda: (json.dumps(value, indent=2) + "\n").encode(),
        "table.csv": lambda: as_csv(verdict).encode(),
        "table.tex": lambda: as_latex(verdict).encode(),
        "table.md": lambda: text.encode(),
        "seeds.png": lambda: picture_of_seeds(verdict),
        "cost.png": lambda: picture_of_cost(verdict),
    }


def versions_of(records: Sequence[Record]) -> dict[str, str]:
    """Package -> its version in the runs; several where they differ."""
    found: dict[str, list[str]] = {}
    for record in records:
        for name, number in record.versions.items():
            if number not in found.setdefault(name, []):
                found[name].append(number)
    return {name: ", ".join(numbers) for name, numbers in found.items()}


def _provenance(
    verdict: Verdict,
    commands: Sequence[str],
    told_by: str | None,
    versions: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
) -> str:
    """Where every number comes from: the commands, the versions, the state of the repository."""
    lines = ["", "![every seed](seeds.png)", "", "![score against seconds](cost.png)", ""]
    if commands:
        lines += ["Made by", "", "```bash", *commands, "```", ""]
    for cell in verdict.cells:
        runs = [(row.method, seed, one.command) for row in cell.rows for seed, one in row.records.items()]
        lines += [f"{cell.name + ': ' if cell.name else ''}the runs", "", "```bash", *shortened(runs), "```", ""]
    if told_by:
        lines += ["Told by", "", "```bash", told_by, "```", ""]
    if versions:
        lines += ["Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".", ""]
    states = list(dict.fromkeys(state(git) for row in rows for git in row["git"]))
    if states:
        lines += [f"The runs were made at commit {', '.join(states)}.", ""]
    return "\n".join(lines)


def state(git: Mapping[str, Any]) -> str:
    """The commit of a record, and whether the source differed from it."""
    return f"{git['commit']}{', with changes' if git['dirty'] else ''}"


def _write(output: Path, files: Mapping[str, Callable[[], bytes]]) -> None:
    """Write each file whole or not at all."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output_dir {output} cannot be made ({error.strerror})") from None
    for name, content in files.items():
        try:
            write_whole(output / name, content())
        except OSError as error:
            raise ValueError(
                f"{output / name} cannot be written ({error.strerror}); the runs are as they were"
            ) from None

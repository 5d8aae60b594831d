"""Whether what a benchmark script measures costs what it cost before: the script of two checkouts, run in turns.

    python benchmarks/paired_reports.py --before COMMIT --output results/cost/paired/recurrent.json -- \\
        recurrent.py --cells LSTM --layout full --precision highest --rounds 5

For scripts that measure each row beside one that is not ours (torch's own layer, a plain step) and report the ratio:
recurrent.py, epoch_cost.py. In each turn the script runs in a process from either checkout, and from the first once
more, in an order drawn anew. The table shows the median over the turns of a row's ratio after, divided by that before,
and the quartiles; "same commit" is the first checkout beside itself and says how far two runs of one commit are apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
from typing import Any

from paired import ROOT, SIDES, commit_of, unpacked


def name_of(row: dict[str, Any]) -> str:
    """A row is told from the others by its words, and by what is switched on."""
    words = [name if value is True else str(value) for name, value in row.items() if isinstance(value, str | bool)]
    return ", ".join(word for word in words if word != "False")


def measure(checkout: Path, script: list[str]) -> dict[str, float]:
    """Row -> its ratio, of the script as it is in a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, str(checkout / "benchmarks" / script[0]), *script[1:], "--output", str(report)]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        subprocess.run(command, check=True, env=environment, cwd=folder, stdout=subprocess.DEVNULL)
        found = json.loads(report.read_text(encoding="utf-8"))
    if "rows" in found:
        return {name_of(row): row["ratio"] for row in found["rows"]}
    return {name_of(row): row["time"] for row in found["methods"]}


def compared(name: str, turns: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name}
    for what, side in (("time", "after"), ("same commit", "before again")):
        ratios = [turn[side][name] / turn["before"][name] for turn in turns]
        low, middle, high = quantiles(ratios, n=4)
        row |= {what: middle, f"{what} quartiles": [low, high]}
    return {**row, "ratios": {side: [turn[side][name] for turn in turns] for side in SIDES}}


def main() -> None:
    parser = argparse.ArgumentParser(description="A benchmark script of one commit beside that of this working tree.")
    parser.add_argument("--before", default="HEAD~1", help="a commit")
    parser.add_argument("--turns", type=int, default=5, help="at least 2")
    parser.add_argument("--output", type=Path, help="JSON file, written anew after every turn")
    parser.add_argument("script", nargs="+", help="after --: name of a file of benchmarks/, and its flags")
    arguments = parser.parse_args()
    random.seed(0)
    turns: list[dict[str, dict[str, float]]] = []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        before = unpacked(arguments.before, Path(folder))
        places = {"before": before, "before again": before, "after": ROOT}
        for number in range(1, arguments.turns + 1):
            seen = {side: measure(places[side], arguments.script) for side in random.sample(SIDES, len(SIDES))}
            turns.append(seen)
            print(f"turn {number} of {arguments.turns}", file=sys.stderr, flush=True)
            if number >= 2:
                rows = [compared(name, turns) for name in seen["before"] if name in seen["after"]]
                write(arguments, rows)
    print("| row | time | quartiles | same commit | quartiles |\n|---|---|---|---|---|")
    for row in rows:
        (low, high), (least, most) = row["time quartiles"], row["same commit quartiles"]
        print(
            f"| {row['name']} | {row['time']:.3f} | {low:.3f} to {high:.3f} | {row['same commit']:.3f} "
            f"| {least:.3f} to {most:.3f} |"
        )


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    if arguments.output is None:
        return
    report = {
        "before": commit_of(arguments.before),
        "after": f"working tree on {commit_of('HEAD')}",
        "script": ["DIR" if Path(word).is_absolute() else word for word in arguments.script],
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

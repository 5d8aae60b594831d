"""What the built-in example of a command shows, over seeds: its three rows, and the paired difference of each two.

    python benchmarks/example.py glue --seeds 1 2 3 --output results/example_glue/raw.json

Every seed draws its own rows and weights. Each run is the whole command with its defaults, `--reg rat --seed S`; the
file is written after every run, and runs that are in it are not made again. Beside it, table.md has the numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import permutation_test

from hf_rat.cli import glue, textcls
from hf_rat.experiments.paired import paired_difference

COMMANDS = {"glue": glue, "textcls": textcls}
FOLDERS = {"plain": "plain", "rat": "", "plain, tuned": "plain-tuned"}
SCORES = ("eval_accuracy", "eval_accuracy_train", "eval_loss", "eval_samples", "epoch", "train_runtime")


def run(command: str, seed: int) -> dict[str, Any]:
    """The scores of the three rows of one run of the command."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.time()
        COMMANDS[command].run(["--reg", "rat", "--seed", str(seed), "--output_dir", folder])
        found: dict[str, Any] = {"seed": seed, "seconds": time.time() - begin}
        for name, below in FOLDERS.items():
            results = json.loads((Path(folder) / below / "all_results.json").read_text(encoding="utf-8"))
            found[name] = {score: results[score] for score in SCORES}
        found["choice"] = json.loads((Path(folder) / "plain-tuned" / "choice.json").read_text(encoding="utf-8"))
    return found


def paired(better: list[float], usual: list[float]) -> dict[str, float | None]:
    """The paired difference with its interval (Student's t over seeds), and the two-sided p of all changes of sign."""
    found = paired_difference(better, usual)
    test = permutation_test(
        (np.array(better) - np.array(usual),),
        lambda sample, axis: sample.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
        batch=4096,
    )
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "sd": found.sd,
        "wins": found.wins,
        "of": found.n,
        "p": float(test.pvalue),
    }


def table(report: dict[str, Any]) -> str:
    """Markdown: the three rows, `rat` against the others, and each seed."""
    count = len(report["runs"])
    lines = [f"| training | clean accuracy in percent, mean ± SD of {count} seeds |", "|---|---|"]
    lines += [f"| {name} | {100 * a['mean']:.1f} ± {100 * a['sd']:.1f} |" for name, a in report["accuracy"].items()]
    lines += ["", "| paired difference | points, mean ± SD | 95 % interval | higher in | exact p |", "|" + "---|" * 5]
    for name in ("rat against plain", "rat against plain, tuned"):
        found = report[name]
        difference = f"{100 * found['mean']:+.1f} ± {100 * found['sd']:.1f}"
        interval = f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"
        lines.append(f"| {name} | {difference} | {interval} | {found['wins']} of {found['of']} | {found['p']:.2g} |")
    lines += [
        "",
        "| seed | plain | rat | plain, tuned | dropout | epochs | seconds, whole command |",
        "|" + "---|" * 7,
    ]
    for one in report["runs"]:
        scores = " | ".join(f"{100 * one[name]['eval_accuracy']:.1f}" for name in FOLDERS)
        chosen = f"{one['choice']['dropout']} | {one['plain, tuned']['epoch']:.0f}"
        lines.append(f"| {one['seed']} | {scores} | {chosen} | {one['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(1, 21)))
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"runs": []}
    if arguments.output.is_file():
        report = json.loads(arguments.output.read_text(encoding="utf-8"))
    runs: list[dict[str, Any]] = report["runs"]
    for seed in arguments.seeds:
        if seed in {run["seed"] for run in runs}:
            continue
        runs.append(run(arguments.command, seed))
        report["command"] = f"{arguments.command} --reg rat --seed S"
        report["versions"] = {name: version(name) for name in ("torch", "transformers", "accelerate", "numpy")}
        write(arguments.output, told(report))
    if len(runs) > 1:
        report = told(report)
        write(arguments.output, report)
        arguments.output.with_name("table.md").write_text(table(report), encoding="utf-8")
        print(table(report))


def told(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the statistics of its runs, which stand last."""
    runs = report.pop("runs")
    accuracies = {name: [one[name]["eval_accuracy"] for one in runs] for name in FOLDERS}
    if len(runs) > 1:
        report["accuracy"] = {name: {"mean": mean(all_), "sd": stdev(all_)} for name, all_ in accuracies.items()}
        report["rat against plain"] = paired(accuracies["rat"], accuracies["plain"])
        report["rat against plain, tuned"] = paired(accuracies["rat"], accuracies["plain, tuned"])
    report["runs"] = runs
    return report


def write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

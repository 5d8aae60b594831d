"""What `hf-rat analyze` found over several seeds of the training: means, and paired differences to the first model.

    python benchmarks/analyses.py results/analysis/ag_news_textcnn

The folder holds WHAT/SEED/WHAT.json, as `hf-rat analyze WHAT MODEL/seed-SEED ... --output_dir WHAT/SEED` writes them.
A line is one number of each model, averaged over the seeds; below the first model's, the difference to it and its 95 %
interval over the seeds (Student's t), which says nothing where there is one seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from hf_rat.analysis.landscape import area_below
from hf_rat.experiments.paired import paired_difference

STUDIES = ("calibration", "gap", "sharpness", "landscape", "robustness")
LEVELS = (0.01, 0.02, 0.05, 0.1)  # of the loss, the same for all seeds, unlike those of the contours
Found = dict[str, dict[str, list[float]]]  # name of a number -> model -> its value with each seed


def numbers(what: str, told: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """The name of a number, the model, and the number, of one JSON file."""
    if what == "robustness":
        for curve, found in told["curves"].items():
            for model, points in found["models"].items():
                for size, point in zip(found["sizes"], points, strict=True):
                    yield f"accuracy, {curve} {size:g}", model, point["accuracy"]
                    yield f"loss, {curve} {size:g}", model, point["loss"]
        return
    for model, found in told["models"].items():
        flat: dict[str, float] = {}
        if what == "calibration":
            flat = {"temperature": found["temperature"], "ECE": found["before"]["ece"], "NLL": found["before"]["nll"]}
            flat |= {"Brier": found["before"]["brier"], "ECE with T": found["after"]["ece"]}
            flat |= {"NLL with T": found["after"]["nll"]}
        elif what == "gap":
            flat = {name: found[name] for name in ("variance", "agreement", "input_gradient_norm")}
            flat |= {"fd": found["terms"]["fd"], "el": found["terms"]["el"]}
            for of in ("whole", "one_pass", "averaged"):
                flat |= {f"{of} {score}": value for score, value in found[of].items()}
            if "remark" in found:
                flat |= {f"{name} of the last layer": found["remark"][name] for name in ("fd", "el", "add")}
        elif what == "sharpness":
            flat = {name: found[name] for name in ("loss", "worst_loss", "rise", "trace")}
            flat["largest eigenvalue"] = found["eigenvalues"][0]
        elif what == "landscape":
            axes = told["xs"], told["ys"], found["losses"]
            flat = {f"area below {level:g}": area_below(*axes, level) for level in LEVELS}
        yield from ((name, model, value) for name, value in flat.items())


def gather(folder: Path, what: str) -> Found:
    """Every number of a study, seed by seed in the order of the folders' names."""
    found: Found = {}
    for path in sorted(folder.glob(f"{what}/*/{what}.json")):
        for name, model, value in numbers(what, json.loads(path.read_text(encoding="utf-8"))):
            found.setdefault(name, {}).setdefault(model.partition("/")[0], []).append(value)
    return found


def told(own: list[float], baseline: list[float] | None) -> str:
    """The mean, and below the first model the difference to that with its interval."""
    line = f"{mean(own):.4g}"
    if baseline is None:
        return line
    difference = paired_difference(own, baseline)
    if difference.low is None or difference.high is None:
        return f"{line} ({difference.mean:+.3g})"
    return f"{line} ({difference.low:+.3g} to {difference.high:+.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for what in STUDIES:
        found = gather(folder, what)
        if not found:
            continue
        models = list(next(iter(found.values())))
        seeds = len(next(iter(found.values()))[models[0]])
        print(f"\n{what}, {seeds} seed{'s' * (seeds > 1)}\n")
        print("| |", " | ".join(models), "|")
        print("|" + "---|" * (len(models) + 1))
        for name, values in found.items():
            base = values[models[0]]
            cells = [told(values[model], base if number else None) for number, model in enumerate(models)]
            print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()

"""What `hf-rat analyze` found over several seeds of the training: means, and paired differences to the first model.

    python benchmarks/analyses.py results/analysis/ag_news_textcnn

The folder holds WHAT/SEED/WHAT.json, as `hf-rat analyze WHAT MODEL/seed-SEED ... --output_dir WHAT/SEED` writes them.
A line is one number of each model, averaged over the seeds; below the first model's, the difference to it and its 95 %
interval over the seeds (Student's t), which says nothing where there is one seed. A line that begins with
"rise of" is a difference within a model, and all its intervals are of itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from hf_rat.analysis.landscape import area_below
from hf_rat.experiments.paired import paired_difference

LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # of the loss, the same for all seeds, unlike those of the contours
RISES = (0.05, 0.1, 0.2)  # above the loss in the middle
Numbers = dict[str, float]  # name of a number -> its value, of one model
Found = dict[str, dict[str, list[float]]]  # name of a number -> model -> its value with each seed


def calibration(record: dict[str, Any], model: str) -> Numbers:
    found = record["models"][model]
    before, after = found["before"], found["after"]
    flat = {"temperature": found["temperature"], "ECE": before["ece"], "NLL": before["nll"], "Brier": before["brier"]}
    return flat | {"ECE with T": after["ece"], "NLL with T": after["nll"]}


def gap(record: dict[str, Any], model: str) -> Numbers:
    found = record["models"][model]
    flat = {name: found[name] for name in ("variance", "agreement", "input_gradient_norm")}
    flat |= {name: found["terms"][name] for name in ("fd", "el")}
    for of in ("whole", "one_pass", "averaged"):
        flat |= {f"{of} {score}": value for score, value in found[of].items()}
    flat |= {
        f"rise of {score} by one pass": found["one_pass"][score] - value for score, value in found["whole"].items()
    }
    remark = found.get("remark", {})
    return flat | {f"{name} of the last layer": remark[name] for name in ("fd", "el", "add") if remark}


def sharpness(record: dict[str, Any], model: str) -> Numbers:
    found = record["models"][model]
    flat = {name: found[name] for name in ("loss", "worst_loss", "rise", "trace")}
    return flat | {"largest eigenvalue": found["eigenvalues"][0]}


def landscape(record: dict[str, Any], model: str) -> Numbers:
    axes = record["xs"], record["ys"], record["models"][model]["losses"]
    middle = axes[2][len(axes[1]) // 2][len(axes[0]) // 2]
    flat = {"loss in the middle": middle}
    flat |= {f"area below {level:g}": area_below(*axes, level) for level in LEVELS}
    return flat | {f"area below the middle + {rise:g}": area_below(*axes, middle + rise) for rise in RISES}


def robustness(record: dict[str, Any], model: str) -> Numbers:
    flat: Numbers = {}
    for name, curve in record["curves"].items():
        points = curve["models"][model]
        for size, point in zip(curve["sizes"], points, strict=True):
            flat |= {f"{score}, {name} {size:g}": point[score] for score in ("accuracy", "loss")}
        flat[f"rise of loss, {name} {curve['sizes'][-1]:g}"] = points[-1]["loss"] - points[0]["loss"]
    return flat


STUDIES = {of.__name__: of for of in (calibration, gap, sharpness, landscape, robustness)}


def gather(folder: Path, what: str) -> Found:
    """Every number of a study, seed by seed in the order of the folders' names."""
    found: Found = {}
    for path in sorted(folder.glob(f"{what}/*/{what}.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for model in record["runs"]:
            for name, value in STUDIES[what](record, model).items():
                found.setdefault(name, {}).setdefault(model.partition("/")[0], []).append(value)
    return found


def told(own: list[float], baseline: list[float] | None) -> str:
    """The mean, and the difference to the baseline with its interval."""
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
            first = values[models[0]]
            if name.startswith("rise of"):
                cells = [told(values[model], [0.0] * len(first)) for model in models]
            else:
                cells = [told(first, None), *(told(values[model], first) for model in models[1:])]
            print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()

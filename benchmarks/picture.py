"""The picture of the README: what each method gained over dropout, seed by seed, from the committed results.

    python benchmarks/picture.py --output docs/gains.png

Every dot is one seed: the test accuracy (TNEWS: of the dev set) of a method minus that of the same model with dropout
alone, in points; a bar is their mean. Data: results/small_models/<data>_<model>/final/results.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).resolve().parents[1] / "results" / "small_models"
DATA = {"ag_news": "AG News", "imdb": "IMDB", "tnews": "TNEWS"}
MODELS = {"textcnn": "TextCNN", "bilstm": "BiLSTM", "texthan": "TextHAN"}
METHODS = {"fgm": ("FGM", "#0072b2"), "rdrop": ("R-Drop", "#e69f00"), "rat": ("R-AT", "#009e73")}
REFERENCE = "plain"


def gains(folder: Path) -> dict[str, list[float]]:
    """method -> gain of each seed over dropout alone, in points; of R-AT the form with a divergence."""
    methods = json.loads((folder / "final" / "results.json").read_text(encoding="utf-8"))["methods"]
    scores = {row["method"]: row["scores"] for row in methods}
    name = "test_accuracy" if "test_accuracy" in scores[REFERENCE] else "eval_accuracy"
    plain = scores[REFERENCE][name]["values"]
    found = {}
    for entry, row in scores.items():
        method = entry.partition("(")[0]
        if method in METHODS and "alpha=0" not in entry.replace("alpha=0.", "alpha=."):
            found[method] = [100 * (mine - other) for mine, other in zip(row[name]["values"], plain, strict=True)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what each method gained over dropout, seed by seed.")
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7.2, 3.6), dpi=150)
    places: list[tuple[float, str]] = []
    row = 0.0
    for data, title in DATA.items():
        for model, kind in MODELS.items():
            for offset, (method, (label, colour)) in enumerate(METHODS.items()):
                values = gains(RESULTS / f"{data}_{model}").get(method, [])
                at = [row + 0.25 * (offset - 1)] * len(values)
                first = label if row == 0 else None
                axes.barh(at[:1], [mean(values)], height=0.22, color=colour, alpha=0.35, label=first)
                axes.scatter(values, at, s=12, color=colour, zorder=3)
            places.append((row, f"{title}, {kind}"))
            row += 1
        row += 0.3
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks([place for place, _ in places], [name for _, name in places], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy gained over dropout alone, in points (each dot is a seed)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    figure.tight_layout()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, metadata={"Software": None})


if __name__ == "__main__":
    main()

"""`hf-rat analyze calibration`: its flags, and what it does with them."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

SUMMARY = "whether probabilities are as high as they are right: ECE, Brier, likelihood, one temperature"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add those of its own."""
    own = parser.add_argument_group("calibration")
    own.add_argument(
        "--fit_share", type=float, default=0.5, metavar="X", help="of the rows, to which a temperature is fitted [0.5]"
    )
    own.add_argument("--bins", type=int, default=15, metavar="N", help="of equal width, of the ECE [15]")
    own.add_argument("--seed", type=int, default=0, metavar="N", help="of the split of the rows [0]")


def run(subjects: list[Any], asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """Measure all subjects; what goes into the JSON file, the pictures, and what is printed."""
    from hf_rat.analysis.calibration import calibrate
    from hf_rat.analysis.gap_pictures import reliability_diagram
    from hf_rat.finetuning.summary import table

    if not 0 < asked.fit_share < 1:
        raise ValueError(f"--fit_share {asked.fit_share}: a share between 0 and 1 is needed")
    if asked.bins < 1:
        raise ValueError(f"--bins {asked.bins}: at least 1 is needed")
    found = {
        one.name: calibrate(one.model, one.encode(), asked.fit_share, asked.seed, asked.bins, f"RUN {one.folder}")
        for one in subjects
    }
    lines = [["model", "temperature", "accuracy", "ECE", "Brier", "NLL", "with it: ECE", "Brier", "NLL"]]
    for name, one in found.items():
        parts = [[f"{part.ece:.4f}", f"{part.brier:.4f}", f"{part.nll:.4f}"] for part in (one.before, one.after)]
        lines.append([name, f"{one.temperature:.3f}", f"{one.before.accuracy:.4f}", *parts[0], *parts[1]])
    first = next(iter(found.values()))
    told = f"Temperatures are fitted to {first.fitted} rows drawn by seed {first.seed}; the other {first.measured}:"
    settings = {name: getattr(asked, name) for name in ("fit_share", "bins", "seed")}
    content = {"settings": settings, "models": {name: dataclasses.asdict(one) for name, one in found.items()}}
    return content, {"reliability.png": reliability_diagram(found)}, f"{told}\n{table(lines)}"

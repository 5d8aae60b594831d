"""`hf-rat analyze landscape`: its flags, and what it does with them."""

from __future__ import annotations

import argparse
from typing import Any

SUMMARY = "the loss along random directions through the weights, as lines, contours and surfaces"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add those of its own."""
    own = parser.add_argument_group("landscape")
    own.add_argument("--dimensions", type=int, choices=(1, 2), default=2, help="a line or a grid [2]")
    own.add_argument("--radius", type=float, default=1.0, metavar="X", help="1 is as far as the weights are long [1]")
    own.add_argument("--points", type=int, default=51, metavar="N", help="of an axis [51]")
    own.add_argument("--seed", type=int, default=0, metavar="N", help="of the directions [0]")
    own.add_argument("--rule", choices=("filter", "tensor"), default="filter", help="what is scaled [filter]")
    own.add_argument("--biases", choices=("zero", "move"), default="zero", help="and gains of normalisation [zero]")
    own.add_argument("--levels", nargs="+", type=float, metavar="X", help="losses of contours [eight, by the models]")


def run(subjects: list[Any], asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """Measure all subjects; what goes into the JSON file, the pictures, and what is printed."""
    from hf_rat.analysis.landscape_pictures import picture_of_contours, picture_of_lines, picture_of_surfaces
    from hf_rat.analysis.landscape_record import Plan, measure
    from hf_rat.finetuning.processes import say

    for name in ("radius", "points"):
        if not getattr(asked, name) > (2 if name == "points" else 0) or getattr(asked, name) == float("inf"):
            wanted = "at least 3 are needed" if name == "points" else "a number above 0 is needed"
            raise ValueError(f"--{name} {getattr(asked, name)}: {wanted}")
    plan = Plan(asked.radius, asked.points, asked.dimensions, asked.seed, asked.rule, asked.biases)
    found = measure(subjects, plan, asked.output_dir / "landscape.json", asked.levels, say)
    if asked.dimensions == 1:
        return found, {"landscape.png": picture_of_lines(found)}, _told(found)
    pictures = {"contours.png": picture_of_contours(found), "surfaces.png": picture_of_surfaces(found)}
    return found, pictures, _told(found)


def _told(found: dict[str, Any]) -> str:
    """A line for each model: its loss in the middle, the largest one, and the areas."""
    lines = []
    for name, one in found["models"].items():
        losses = [loss for row in one["losses"] for loss in row if loss is not None]
        middle = one["losses"][len(found["ys"]) // 2][len(found["xs"]) // 2]
        areas = [
            f"{area:.3g} below {level:.3g}" for level, area in zip(found["levels"], one["areas"] or (), strict=False)
        ]
        ends = (
            f"loss {middle:.4g} in the middle, {min(losses):.4g} to {max(losses):.4g}" if losses else "no finite loss"
        )
        lines.append(f"{name}: {ends}" + (f"; area {', '.join(areas)}" if areas else ""))
    return "\n".join(lines)

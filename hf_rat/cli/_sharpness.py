"""`hf-rat analyze sharpness`: its flags, and what it does with them."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

SUMMARY = "the worst loss near the weights, the largest eigenvalues of the loss's Hessian, and its trace"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add those of its own."""
    own = parser.add_argument_group("sharpness")
    own.add_argument("--radius", type=float, default=0.01, metavar="X", help="share of each tensor's norm [0.01]")
    own.add_argument("--steps", type=int, default=20, metavar="N", help="of gradient ascent [20]")
    own.add_argument("--eigenvalues", type=int, default=3, metavar="N", help="[3]")
    own.add_argument("--probes", type=int, default=10, metavar="N", help="random vectors for the trace [10]")
    own.add_argument("--seed", type=int, default=0, metavar="N", help="of these [0]")
    own.add_argument(
        "--products", choices=("double backward", "central differences"), help="[the first where a model has it]"
    )


def run(subjects: list[Any], asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """Measure all subjects; what goes into the JSON file, the pictures, and what is printed."""
    from hf_rat.analysis.sharpness import sharpness
    from hf_rat.finetuning.processes import say

    if not 0 < asked.radius < float("inf"):
        raise ValueError(f"--radius {asked.radius}: a number above 0 is needed")
    for name, least in (("steps", 1), ("eigenvalues", 1), ("probes", 2)):
        if getattr(asked, name) < least:
            raise ValueError(f"--{name} {getattr(asked, name)}: at least {least} is needed")
    given = (asked.radius, asked.steps, asked.eigenvalues, asked.probes, asked.seed, asked.products)
    found = {s.name: dataclasses.asdict(sharpness(s.model, s.encode(), *given, say)) for s in subjects}
    told = [
        f"{name}: loss {one['loss']:.4g}, at worst {one['worst_loss']:.4g} within {one['radius']:g} of each tensor; "
        f"eigenvalues {', '.join(f'{value:.3g}' for value in one['eigenvalues'])}; "
        f"trace {one['trace']:.3g} ± {one['trace_error']:.2g}"
        for name, one in found.items()
    ]
    return {"models": found}, {}, "\n".join(told)

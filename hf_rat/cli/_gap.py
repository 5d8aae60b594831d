"""`hf-rat analyze gap`: its flags, and what it does with them."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

SUMMARY = "how far passes with dropout differ, what averaging them gains, and how steep the loss is in the input"
_NO_SITE = "none"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add those of its own."""
    own = parser.add_argument_group("gap")
    own.add_argument("--masks", type=int, default=20, metavar="N", help="passes with dropout, an even number [20]")
    own.add_argument(
        "--site",
        default="logits",
        help="of the random and adversarial masks of Remark 1: logits, recurrent, a linear layer, or none [logits]",
    )
    own.add_argument("--rate", type=float, default=0.05, metavar="X", help="share of the site's units off [0.05]")
    own.add_argument("--steps", type=int, default=2, metavar="N", help="of the search of adversarial masks [2]")
    own.add_argument("--seed", type=int, default=0, metavar="N", help="of all masks [0]")


def run(subjects: list[Any], asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """Measure all subjects; what goes into the JSON file, the pictures, and what is printed."""
    from hf_rat.analysis.dropout_gap import dropout_gap, remark
    from hf_rat.analysis.gap_pictures import picture_of_gap
    from hf_rat.analysis.input_gradient import input_gradient_norms

    if asked.masks < 4 or asked.masks % 2:
        raise ValueError(f"--masks {asked.masks}: an even number of at least 4 is needed, they are compared in pairs")
    if not 0 < asked.rate < 1:
        raise ValueError(f"--rate {asked.rate}: a share between 0 and 1 is needed")
    if asked.steps < 1:
        raise ValueError(f"--steps {asked.steps}: at least 1 is needed")
    gaps, models = {}, {}
    for one in subjects:
        batches = one.encode()
        gap = dropout_gap(one.model, batches, asked.masks, asked.seed, f"RUN {one.folder}")
        norms = input_gradient_norms(one.model, batches)
        gaps[one.name] = gap
        models[one.name] = {**dataclasses.asdict(gap), "input_gradient_norm": float(norms.mean())}
        if asked.site != _NO_SITE:
            found = remark(one.model, batches, asked.site, asked.rate, asked.steps, asked.masks, asked.seed)
            models[one.name]["remark"] = found
    settings = {name: getattr(asked, name) for name in ("masks", "site", "rate", "steps", "seed")}
    return {"settings": settings, "models": models}, {"gap.png": picture_of_gap(gaps)}, _told(models)


def _told(models: dict[str, Any]) -> str:
    from hf_rat.finetuning.summary import table

    first = next(iter(models.values()))
    lines = [["model", "", *first["whole"]]]
    for name, one in models.items():
        for part, said in (("whole", "no dropout"), ("one_pass", "one pass"), ("averaged", "averaged")):
            lines.append([name, said, *(f"{value:.4f}" for value in one[part].values())])
    measures = [["model", "variance", "agreement", "FD/4", "EL", "input gradient"]]
    for name, one in models.items():
        agreement = "" if one["agreement"] is None else f"{one['agreement']:.4f}"
        terms = [f"{value:.3g}" for value in (one["terms"]["fd"] / 4, one["terms"]["el"], one["input_gradient_norm"])]
        measures.append([name, f"{one['variance']:.3g}", agreement, *terms])
    told = [table(lines), "", table(measures)]
    for name, one in models.items():
        if "remark" in one:
            terms = one["remark"]
            off = terms["units_off"]["add"]
            bound = f"FD/4 {terms['fd'] / 4:.3g}, EL {terms['el']:.3g}, AdD {terms['add']:.3g} with {off} units off"
            told.append(f"{name}, masks of the one layer: {bound}")
    return "\n".join(told)

"""`hf-rat analyze robustness`: its flags, and what it does with them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

SUMMARY = "accuracy and loss under noisy characters and under attacks"
_NOISE = "character_noise"
_MEASURES = (_NOISE, "fgm", "pgd", "random_masks", "adversarial_masks")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add those of its own."""
    own = parser.add_argument_group("robustness")
    rates, radii = [0.05, 0.1, 0.2, 0.3], [0.02, 0.05, 0.1, 0.2]
    own.add_argument(
        "--measures", nargs="*", choices=_MEASURES, default=list(_MEASURES), help="none: --texts alone [all]"
    )
    own.add_argument("--texts", type=Path, metavar="FILE", help="texts attacked elsewhere, paired with the rows")
    own.add_argument("--noise_rates", nargs="+", type=float, default=rates, metavar="X", help=f"[{_told(rates)}]")
    own.add_argument(
        "--noise_kinds",
        nargs="+",
        choices=("delete", "qwerty", "swap", "insert"),
        default=["delete", "qwerty", "swap", "insert"],
        help="slips of the keyboard [all of them]",
    )
    own.add_argument(
        "--noise_per", choices=("character", "word"), default="character", help="what a rate counts [character]"
    )
    own.add_argument("--draws", type=int, default=1, metavar="N", help="noisy texts of each row [1]")
    own.add_argument(
        "--radii",
        nargs="+",
        type=float,
        default=radii,
        metavar="X",
        help=f"of fgm and pgd, as shares of the length of an example's embeddings [{_told(radii)}]",
    )
    own.add_argument("--pgd_steps", type=int, default=10, metavar="N", help="[10]")
    own.add_argument("--mask_rates", nargs="+", type=float, default=[0.1, 0.3, 0.5], metavar="X", help="[0.1 0.3 0.5]")
    own.add_argument("--seed", type=int, default=0, metavar="N", help="of noise and random masks [0]")


def _told(numbers: list[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def run(subjects: list[Any], asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """Measure all subjects; what goes into the JSON file, the pictures, and what is printed."""
    from hf_rat.analysis.answers import answers_of
    from hf_rat.analysis.attacked_texts import only, read_attacked
    from hf_rat.analysis.robustness import Curve, attack_curve, noise_curve
    from hf_rat.analysis.robustness_pictures import picture_of_curve

    if not asked.measures and asked.texts is None:
        raise ValueError("--measures: nothing is measured; name some, or give --texts")
    for name in ("draws", "pgd_steps"):
        if getattr(asked, name) < 1:
            raise ValueError(f"--{name} {getattr(asked, name)}: at least 1 is needed")
    for name, fits, needed in (
        ("noise_rates", lambda rate: 0 < rate <= 1, "a share above 0, up to 1,"),
        ("radii", lambda radius: 0 < radius < float("inf"), "a radius above 0"),
        ("mask_rates", lambda rate: 0 < rate < 1, "a share between 0 and 1"),
    ):
        for value in getattr(asked, name):
            if not fits(value):
                raise ValueError(f"--{name} {value:g}: {needed} is needed")
    texts = read_attacked(asked.texts, subjects[0].rows) if asked.texts is not None else None
    clean = {subject.name: answers_of(subject.model, subject.encode())[0] for subject in subjects}
    curves = []
    if _NOISE in asked.measures:
        kinds = tuple(asked.noise_kinds)
        curves.append(noise_curve(subjects, clean, asked.noise_rates, kinds, asked.noise_per, asked.draws, asked.seed))
    for attack in _MEASURES[1:]:
        if attack in asked.measures:
            sizes = asked.mask_rates if attack.endswith("masks") else asked.radii
            steps = asked.pgd_steps if attack == "pgd" else None
            curves.append(attack_curve(subjects, clean, attack, sizes, steps, asked.seed))
    found = {curve.name: curve.summary() for curve in curves}
    pictures = {f"{name.replace(' ', '_')}.png": picture_of_curve(name, curve) for name, curve in found.items()}
    if texts is not None:
        places, attacked = texts
        part = [dataclasses.replace(subject, rows=only(subject.rows, places)) for subject in subjects]
        answers = {one.name: [answers_of(one.model, one.encode(own))[0] for own in (None, attacked)] for one in part}
        found["texts"] = {**Curve("texts", "", (0, 1), answers).summary(), "unit": "0: as they are, 1: attacked"}
        found["texts"]["rows"] = [subjects[0].rows.numbers[place] for place in places]
    flags = ("noise_kinds", "noise_per", "draws", "pgd_steps", "seed")
    settings = {name: getattr(asked, name) for name in flags}
    return {"settings": settings, "curves": found}, pictures, _table(found)


def _table(found: dict[str, Any]) -> str:
    from hf_rat.finetuning.summary import table

    lines = [["", "size", "model", "accuracy", "loss", "loss - first's"]]
    for name, curve in found.items():
        for model, points in curve["models"].items():
            apart = curve["differences"].get(model, [{}] * len(points))
            for size, point, other in zip(curve["sizes"], points, apart, strict=True):
                accuracy = f"{point['accuracy']:.4f}" if "accuracy" in point else ""
                lines.append([name, f"{size:g}", model, accuracy, f"{point['loss']:.4f}", _interval(other)])
    return table(lines)


def _interval(difference: dict[str, float]) -> str:
    if "loss_low" not in difference:
        return ""
    return f"{difference['loss']:+.4f} [{difference['loss_low']:+.4f}, {difference['loss_high']:+.4f}]"

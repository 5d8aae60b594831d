"""What `hf-rat analyze` wrote, as plots and tables: robustness, reliability, dropout's gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rat.experiments.sentences import code
from hf_rat.experiments.tables import Table
from hf_rat.report.folders import Analysis
from hf_rat.report.plots import Look, Plot, Sketch, drawn

_ABBREVIATIONS = {"fgm": "FGM", "pgd": "PGD"}
_Point = Mapping[str, float]


@dataclass(frozen=True)
class Study:
    """What one file of `hf-rat analyze` shows.

    Args:
        kind: "robustness", "calibration" or "gap".
        path: of the file, as the page names it.
        about: rows, split and settings, in words.
        looks: model -> how it is drawn.
        groups: title -> plots.
        tables: beside them.
    """

    kind: str
    path: str
    about: str
    looks: Mapping[str, Look]
    groups: Mapping[str, Sequence[Plot]]
    tables: Sequence[Table]


def study_of(analysis: Analysis) -> Study:
    """The plots of a file.

    Raises:
        ValueError: the file is none that `hf-rat analyze` writes.
    """
    try:
        return {"robustness": _robustness, "calibration": _calibration, "gap": _gap}[analysis.kind](analysis)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{analysis.path} is not what hf-rat analyze {analysis.kind} writes ({type(error).__name__}: {error})"
        ) from None


def about(told: Mapping[str, Any]) -> str:
    """Rows, split and settings of a study, in words."""
    parts = [f"{told['rows']:,} rows of the {told['split']} split"] if {"rows", "split"} <= told.keys() else []
    for name, value in (told.get("settings") or {}).items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(f"{name.replace('_', ' ')}: {shown}")
    return "; ".join(parts)


def looks_of(models: Sequence[str]) -> dict[str, Look]:
    """Model -> how it is drawn."""
    return {name: Look.of(number) for number, name in enumerate(models)}


def _robustness(analysis: Analysis) -> Study:
    curves = analysis.told["curves"]
    looks = looks_of(list(dict.fromkeys(name for curve in curves.values() for name in curve["models"])))
    groups = {
        _ABBREVIATIONS.get(name, name[:1].upper() + name[1:]): _of_curve(curve, looks)
        for name, curve in curves.items()
    }
    return Study("robustness", str(analysis.path), about(analysis.told), looks, groups, [])


def _of_curve(curve: Mapping[str, Any], looks: Mapping[str, Look]) -> list[Plot]:
    """Accuracy and loss with the intervals over rows, and the paired differences to the first model with theirs."""
    sizes, models, differences = curve["sizes"], curve["models"], curve["differences"]
    first = next(iter(models))
    plots = []
    for score in ("accuracy", "loss"):
        plots.append(drawn(score.capitalize(), (curve["unit"], score), _sketches(models, sizes, score, looks)))
    best = "accuracy" if any("accuracy" in point for points in differences.values() for point in points) else "loss"
    zero = [(min(sizes), 0.0), (max(sizes), 0.0)]
    title = f"{best.capitalize()} minus that of {first}"
    plots.append(drawn(title, (curve["unit"], best), _sketches(differences, sizes, best, looks), rules=[zero]))
    return [plot for plot in plots if plot is not None]


def _sketches(
    models: Mapping[str, Sequence[_Point]], sizes: Sequence[float], score: str, looks: Mapping[str, Look]
) -> list[Sketch]:
    sketches = []
    for name, points in models.items():
        known = [(size, point) for size, point in zip(sizes, points, strict=True) if score in point]
        curve = [(size, point[score]) for size, point in known]
        band = [(s, p[f"{score}_low"], p[f"{score}_high"]) for s, p in known if f"{score}_low" in p]
        sketches.append(Sketch(name, looks[name], [curve], [band] if band else []))
    return sketches


def _calibration(analysis: Analysis) -> Study:
    models = analysis.told["models"]
    looks = looks_of(list(models))
    groups = {
        "Reliability": [
            plot
            for when, title in (("before", "As it is"), ("after", "With its temperature"))
            if (plot := _reliability(title, {name: found[when] for name, found in models.items()}, looks)) is not None
        ]
    }
    header = ["model", "temperature", "ECE", "after", "NLL", "after", "Brier", "after"]
    rows = []
    for name, found in models.items():
        row = [code(name), f"{found['temperature']:.3f}"]
        for measure in ("ece", "nll", "brier"):
            row += [f"{found[when][measure]:.4f}" for when in ("before", "after")]
        rows.append(row)
    below = (
        "ECE is the expected calibration error, NLL the mean negative log-likelihood; each before and after the"
        " temperature, which was fitted to other rows than these."
    )
    return Study("calibration", str(analysis.path), about(analysis.told), looks, groups, [Table(header, rows, below)])


def _reliability(title: str, found: Mapping[str, Any], looks: Mapping[str, Look]) -> Plot | None:
    """Accuracy against confidence, bin by bin; on the dashed line a model is as sure as it is right."""
    sketches = [
        Sketch(name, looks[name], [[(b["confidence"], b["accuracy"]) for b in one["bins"] if b["rows"]]])
        for name, one in found.items()
    ]
    return drawn(title, ("confidence", "accuracy"), sketches, rules=[[(0.0, 0.0), (1.0, 1.0)]])


def _gap(analysis: Analysis) -> Study:
    models = analysis.told["models"]
    scores = list(next(iter(models.values()))["whole"])
    parts = {"whole": "no dropout", "one_pass": "one pass", "averaged": "averaged"}
    header = ["model", *(f"{score}, {said}" for score in scores for said in parts.values())]
    header += ["variance", "agreement", "FD/4", "EL", "input gradient"]
    rows = []
    for name, one in models.items():
        found = [f"{one[part][score]:.4f}" for score in scores for part in parts]
        agreement = "-" if one["agreement"] is None else f"{one['agreement']:.4f}"
        terms = (one["variance"], one["terms"]["fd"] / 4, one["terms"]["el"], one["input_gradient_norm"])
        variance, *others = (f"{value:.3g}" for value in terms)
        rows.append([code(name), *found, variance, agreement, *others])
    below = (
        "Scores without dropout, of one pass with it and of the passes' average; how far the passes differ; the terms"
        " of fraternal and of expectation-linear dropout; the norm of the loss's gradient in the input."
    )
    return Study("gap", str(analysis.path), about(analysis.told), {}, {}, [Table(header, rows, below)])

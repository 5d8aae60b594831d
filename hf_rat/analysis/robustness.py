"""Accuracy and loss of several models as noise or an attack grows, on the same rows, and their paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from hf_rat.analysis.answers import Answers, answers_of
from hf_rat.analysis.attacks import attacked
from hf_rat.analysis.character_noise import KINDS, noisy
from hf_rat.analysis.subject import Subject

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Curve:
    """How models answer as something grows.

    Args:
        name: of what grows.
        unit: of its sizes.
        sizes: the first is 0, the rows as they are.
        answers: name of the model -> its answers at each size, to the same rows.
    """

    name: str
    unit: str
    sizes: tuple[float, ...]
    answers: Mapping[str, Sequence[Answers]]

    def summary(self) -> dict[str, Any]:
        """Plain numbers: "sizes", "unit", "models" (name -> a dict of `point` for each size) and "differences".

        A difference is that of a model to the first one, of the same rows: name -> a dict of `difference` for each
        size.
        """
        first, *others = self.answers
        return {
            "unit": self.unit,
            "sizes": list(self.sizes),
            "models": {name: [point(one) for one in found] for name, found in self.answers.items()},
            "differences": {
                name: [
                    difference(own, base) for own, base in zip(self.answers[name], self.answers[first], strict=True)
                ]
                for name in others
            },
        }


def noise_curve(
    subjects: Sequence[Subject],
    clean: Mapping[str, Answers],
    rates: Sequence[float],
    kinds: tuple[str, ...] = KINDS,
    per: str = "character",
    draws: int = 1,
    seed: int = 0,
) -> Curve:
    """How models answer to texts with slips of the keyboard.

    Args:
        subjects: all read the same noisy texts.
        clean: name of the model -> its answers to the rows as they are.
        rates: above 0, see `noisy`.
        kinds: of slips.
        per: "character" or "word".
        draws: noisy texts of each row, over which its loss and whether it is answered rightly are averaged.
        seed: of the noise.

    Raises:
        ValueError: as `noisy`.
    """
    found = {subject.name: [clean[subject.name]] for subject in subjects}
    for rate in rates:
        texts = [noisy_texts(subjects[0], rate, kinds, per, 1_000_003 * seed + draw) for draw in range(draws)]
        for subject in subjects:
            drawn = [answers_of(subject.model, subject.encode(own))[0] for own in texts]
            found[subject.name].append(_averaged(drawn))
    return Curve("character noise", f"rate per {per}", (0.0, *rates), found)


def noisy_texts(subject: Subject, rate: float, kinds: tuple[str, ...], per: str, seed: int) -> list[tuple[str, ...]]:
    """The texts of the rows with slips in them, the same for a row whichever other rows there are."""
    rows = subject.rows
    return [
        tuple(noisy(text, rate, f"{seed} {number} {place}", kinds, per) for place, text in enumerate(texts))
        for number, texts in zip(rows.numbers, rows.texts, strict=True)
    ]


def attack_curve(
    subjects: Sequence[Subject],
    clean: Mapping[str, Answers],
    attack: str,
    sizes: Sequence[float],
    steps: int | None = None,
    seed: int = 0,
) -> Curve:
    """How models answer under an attack, which is made on each of them.

    Args:
        subjects: of the same rows.
        clean: name of the model -> its answers to the rows as they are.
        attack: one of `attacks.ATTACKS`.
        sizes: radii or rates.
        steps: of the search.
        seed: of random masks.

    Raises:
        ValueError: as `attacked`.
    """
    found = {
        subject.name: [clean[subject.name], *attacked(subject.model, subject.encode(), attack, sizes, steps, seed)]
        for subject in subjects
    }
    unit = "rate of units that are off" if attack.endswith("masks") else "radius, share of the embeddings' length"
    return Curve(attack.replace("_", " "), unit, (0.0, *sizes), found)


def point(answers: Answers) -> dict[str, float]:
    """ "accuracy" with "accuracy_low" and "accuracy_high" (Wilson's interval), and "loss" with its own (Student's t).

    The intervals are those of the rows, taken as a sample of all rows that one could have drawn. Of a regression there
    is no accuracy; of one row, no interval of its loss.
    """
    found, n = {}, len(answers.losses)
    if answers.right is not None:
        accuracy = float(answers.right.mean())
        low, high = proportion_confint(accuracy * n, n, 1 - CONFIDENCE, "wilson")
        found |= {"accuracy": accuracy, "accuracy_low": float(low), "accuracy_high": float(high)}
    return {**found, **_mean("loss", answers.losses)}


def difference(own: Answers, base: Answers) -> dict[str, float]:
    """The paired difference of two models' answers to the same rows, own - base, as `point` (Student's t, both)."""
    found = _mean("loss", own.losses - base.losses)
    if own.right is not None and base.right is not None:
        found |= _mean("accuracy", own.right.astype(float) - base.right.astype(float))
    return found


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    found = {name: float(values.mean())}
    if len(values) > 1:
        half = float(stats.sem(values)) * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        found |= {f"{name}_low": found[name] - half, f"{name}_high": found[name] + half}
    return found


def _averaged(drawn: Sequence[Answers]) -> Answers:
    rights = [one.right for one in drawn if one.right is not None]
    return Answers(np.mean([one.losses for one in drawn], axis=0), np.mean(rights, axis=0) if rights else None)

"""Simulates comparisons whose truth is known: how often the intervals of `hf-rat compare` hold it, how often its test
raises a false alarm, how often it finds what is there.

    python benchmarks/verdicts.py --output results/verdicts

writes intervals.json, tests.json, tried.json and table.md there, and exits with 1 if a figure misses its bounds.
results/verdicts/README.md tells what is simulated.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower

from hf_rat.experiments.across import compare_across
from hf_rat.experiments.crossed import crossed_difference, pseudo_values
from hf_rat.experiments.paired import detectable_difference, half_width, holm, sign_flip_p

SEEDS, EXAMPLES = (5, 10, 20), (277, 1000)
CHUNK = 50  # runs drawn at once
OWN, BASELINE = 0, 1
Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    """Where scores come from: a run answers an example rightly if skill - difficulty + noise is above zero.

    Args:
        difficulty: SD of the examples' difficulty, which all runs of both methods share: it makes their answers alike.
        taste: SD of what an example is to one method beside the other, the same for all of its seeds.
        luck: SDs of the runs' skill over seeds, of the method and of the baseline.
        shared_luck: SD of what a seed gives to both methods.
        groups: mean number of examples in a group; 0 for none.
        group_taste: SD of what a group of examples is to one method beside the other.
        skill: mean skill of the method and of the baseline. The noise has SD 1.
    """

    difficulty: float = 1.0
    taste: float = 0.0
    luck: tuple[float, float] = (0.0, 0.0)
    shared_luck: float = 0.1
    groups: int = 0
    group_taste: float = 0.0
    skill: tuple[float, float] = (1.6, 1.5)


WORLDS = {
    "noise only": World(shared_luck=0.0),
    "seeds": World(luck=(0.15, 0.15)),
    "seeds, unlike": World(luck=(0.05, 0.25)),
    "examples": World(taste=0.5),
    "seeds and examples": World(taste=0.5, luck=(0.15, 0.15)),
    "all examples alike": World(difficulty=0.0, luck=(0.1, 0.1)),
}
GROUPED = {
    "groups": World(taste=0.2, luck=(0.1, 0.1), groups=4, group_taste=0.7),
    "groups, seeds matter more": World(luck=(0.3, 0.3), groups=4, group_taste=0.5),
}


@dataclass(frozen=True)
class Draw:
    """Some comparisons of a world.

    Args:
        right: bool (runs, methods, seeds, examples).
        here: (runs,), the true difference in accuracy over all seeds, for the test set drawn.
        groups: (runs, examples), the group of each example.
    """

    right: np.ndarray
    here: np.ndarray
    groups: np.ndarray


def normals(generator: np.random.Generator, sd: float, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(sd)


def draw(world: World, runs: int, n: int, m: int, generator: np.random.Generator) -> Draw:
    """Test sets of m examples, each answered by n seeds of both methods."""
    ease = np.array(world.skill, dtype=np.float32)[None, :, None] + normals(generator, world.difficulty, runs, 1, m)
    ease = ease + normals(generator, world.taste, runs, 2, m)
    groups = np.broadcast_to(np.arange(m), (runs, m))
    if world.groups:  # sizes from 1, geometric
        groups = np.cumsum(generator.random((runs, m)) < 1 / world.groups, axis=1)
        tastes = normals(generator, world.group_taste, runs, 2, m + 1)
        ease = ease + np.take_along_axis(tastes, np.repeat(groups[:, None], 2, axis=1), axis=2)
    luck = np.stack([normals(generator, sd, runs, n) for sd in world.luck], axis=1)
    luck = luck + normals(generator, world.shared_luck, runs, 1, n)
    right = ease[:, :, None, :] + luck[..., None] + normals(generator, 1.0, runs, 2, n, m) > 0
    spread = np.sqrt(1 + np.square(world.luck) + world.shared_luck**2)  # of the noise and the seeds together
    chances = stats.norm.cdf(ease / spread[None, :, None]).mean(axis=2)
    return Draw(right, chances[:, OWN] - chances[:, BASELINE], groups)


def everywhere(world: World) -> float:
    """The true difference in accuracy over all seeds and all test sets."""
    others = 1 + world.difficulty**2 + world.taste**2 + world.group_taste**2 + world.shared_luck**2
    chances = stats.norm.cdf(np.array(world.skill) / np.sqrt(others + np.square(world.luck)))
    return float(chances[OWN] - chances[BASELINE])


def draws(world: World, runs: int, n: int, m: int, generator: np.random.Generator) -> Iterator[Draw]:
    for start in range(0, runs, CHUNK):
        yield draw(world, min(CHUNK, runs - start), n, m, generator)


def holds(low: float | None, high: float | None, truth: float) -> bool:
    assert low is not None
    assert high is not None
    return bool(low <= truth <= high)


def student_holds(differences: np.ndarray, truth: np.ndarray | float) -> np.ndarray:
    """(runs, n) -> (runs,), whether the interval over seeds holds the truth."""
    reach = [half_width(float(sd), differences.shape[1], 0.95) for sd in differences.std(axis=1, ddof=1)]
    return np.abs(differences.mean(axis=1) - truth) <= reach


def percentile_holds(differences: np.ndarray, truth: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same of the percentile bootstrap, for comparison."""
    n = differences.shape[1]
    drawn = differences[:, generator.integers(n, size=(1000, n))].mean(axis=2)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    return (low <= truth) & (truth <= high)


# -- intervals -------------------------------------------------------------------------------------------------------


def coverage(estimand: str, world: str, n: int, m: int | None, held: list[bool] | np.ndarray, **more: Any) -> Row:
    share = float(np.mean(held))
    return {
        "what": f"{estimand}: holds the truth",
        "world": world,
        "seeds": n,
        "examples": m,
        "runs": len(held),
        "share": share,
        **more,
    }


def of_worlds(runs: int, generator: np.random.Generator) -> Iterator[Row]:
    """Accuracy over both estimands, and what happens if the wrong interval is taken."""
    for name, world in (WORLDS | GROUPED).items():
        for n in SEEDS:
            for m in EXAMPLES:
                truth = everywhere(world)
                held: dict[str, list[bool]] = {key: [] for key in ("here", "everywhere", "mixed", "ungrouped", "pct")}
                for some in draws(world, runs, n, m, generator):
                    scores = some.right.mean(axis=3)
                    differences = scores[:, OWN] - scores[:, BASELINE]
                    held["here"] += student_holds(differences, some.here).tolist()
                    held["mixed"] += student_holds(differences, truth).tolist()
                    held["pct"] += percentile_holds(differences, some.here, generator).tolist()
                    for (own, baseline), groups in zip(some.right, some.groups, strict=True):
                        found = crossed_difference(own, baseline, groups.tolist() if world.groups else None)
                        held["everywhere"].append(holds(found.low, found.high, truth))
                        if world.groups:
                            found = crossed_difference(own, baseline)
                            held["ungrouped"].append(holds(found.low, found.high, truth))
                yield coverage("this test set", name, n, m, held["here"], bounds=[0.93, 0.97])
                yield coverage("test sets like it", name, n, m, held["everywhere"], bounds=[0.93, 0.97])
                yield coverage("percentile bootstrap over seeds, this test set", name, n, m, held["pct"])
                yield coverage("over seeds, taken for test sets like it", name, n, m, held["mixed"])
                if world.groups:
                    yield coverage("test sets like it, groups not told", name, n, m, held["ungrouped"])


def of_normal_scores(runs: int, generator: np.random.Generator) -> Iterator[Row]:
    """Scores an example that are normal (a loss): seeds', examples' and the rest's effects on the difference."""
    kinds = {"normal, seeds": (0.1, 0.2), "normal, examples": (0.02, 0.5), "normal, noise only": (0.0, 0.0)}
    for name, (of_seeds, of_examples) in kinds.items():
        for n in SEEDS:
            for m in EXAMPLES:
                here, like = [], []
                for _ in range(runs):
                    examples = normals(generator, of_examples, 1, m)
                    table = 1 + normals(generator, of_seeds, n, 1) + examples + normals(generator, 1.0, n, m)
                    here.append(bool(student_holds(table.mean(axis=1)[None], 1 + float(examples.mean()))[0]))
                    found = crossed_difference(table, np.zeros_like(table))
                    like.append(holds(found.low, found.high, 1.0))
                yield coverage("this test set", name, n, m, here, bounds=[0.93, 0.97])
                yield coverage("test sets like it", name, n, m, like, bounds=[0.93, 0.97])


def f1(predicted: np.ndarray, expected: np.ndarray) -> float:
    both = np.count_nonzero(predicted & expected)
    return 2 * both / (np.count_nonzero(predicted) + np.count_nonzero(expected))


def matthews(predicted: np.ndarray, expected: np.ndarray) -> float:
    own, true, both, all_ = predicted.sum(), expected.sum(), np.count_nonzero(predicted & expected), len(expected)
    return float((all_ * both - own * true) / np.sqrt(float(own * (all_ - own)) * float(true * (all_ - true))))


def true_score(score: str, world: World, method: int, positive: float) -> float:
    """Mean over seeds of F1 or Matthews on endlessly many examples, of which a share is positive."""
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    luck = np.hypot(world.luck[method], world.shared_luck) * points
    chance = stats.norm.cdf((world.skill[method] + luck) / np.sqrt(1 + world.difficulty**2 + world.taste**2))
    hits, alarms = positive * chance, (1 - positive) * (1 - chance)
    if score == "F1":
        values = 2 * hits / (hits + alarms + positive)
    else:
        said = hits + alarms
        values = (hits - said * positive) / np.sqrt(said * (1 - said) * positive * (1 - positive))
    return float((weights * values).sum() / weights.sum())


def of_other_scores(runs: int, generator: np.random.Generator) -> Iterator[Row]:
    """F1 and Matthews, by pseudo-values: 68 % of the examples are positive."""
    positive, m, world = 0.68, 277, WORLDS["seeds and examples"]
    scores: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"F1": f1, "Matthews": matthews}
    for name, score in scores.items():
        truth = true_score(name, world, OWN, positive) - true_score(name, world, BASELINE, positive)
        for n in SEEDS:
            held = []
            for some in draws(world, runs, n, m, generator):
                for right in some.right:
                    expected = generator.random(m) < positive
                    own, baseline = (pseudo_values(score, one == expected, expected, blocks=40) for one in right)
                    found = crossed_difference(own, baseline)
                    held.append(holds(found.low, found.high, truth))
            yield coverage("test sets like it", f"{name}, seeds and examples", n, m, held, bounds=[0.93, 0.97])


# -- tests -----------------------------------------------------------------------------------------------------------


def of_false_alarms(runs: int, generator: np.random.Generator) -> Iterator[Row]:
    """The methods are alike: how often p is at most .05."""
    runs *= 4  # the share is close to its bound, so that with fewer chance decides
    for n in (10, 20):
        kinds = {
            "normal": generator.standard_normal((runs, n)),
            "accuracy on 277 examples": np.concatenate(
                [
                    np.subtract(*np.moveaxis(some.right.sum(axis=3), 1, 0))
                    for some in draws(World(luck=(0.15, 0.15), skill=(1.5, 1.5)), runs, n, 277, generator)
                ]
            ),
            "one run in seven fails": np.subtract(
                *(generator.standard_normal((2, runs, n)) - 20 * (generator.random((2, runs, n)) < 1 / 7))
            ),
            "heavy tails": generator.standard_t(2, size=(runs, n)),
        }
        for name, differences in kinds.items():
            alarms = float((sign_flip_p(differences.astype(np.float64)) <= 0.05).mean())
            row = {"what": "permutation test, false alarms", "world": name, "seeds": n, "examples": None}
            yield {**row, "runs": runs, "share": alarms, "bounds": [0, 0.065]}


def power_by_scipy(effect: float, n: int) -> float:
    """Of a two-sided t test at .05, to find a gain, from the noncentral t distribution."""
    return float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, effect * np.sqrt(n)))


def of_power(runs: int, generator: np.random.Generator) -> Iterator[Row]:
    """Normal differences whose true mean is what the table calls detectable, or is 1 SD."""
    for n in SEEDS:
        detectable = detectable_difference(1.0, n)
        assert detectable is not None
        for name, effect in (("the detectable difference", detectable), ("a difference of 1 SD", 1.0)):
            differences = effect + generator.standard_normal((runs, n))
            found = float((~student_holds(differences, 0.0)).mean())
            wanted = float(TTestPower().power(effect, n, 0.025, alternative="larger"))
            near = 3 * np.sqrt(wanted * (1 - wanted) / runs)
            row = {"world": name, "effect": effect, "seeds": n, "examples": None, "runs": runs, "statsmodels": wanted}
            row["scipy"] = power_by_scipy(effect, n)
            yield {
                "what": "Student's t, finds a difference (and should, by statsmodels)",
                **row,
                "share": found,
                "bounds": [wanted - near, wanted + near],
            }
            flipped = float((sign_flip_p(differences) <= 0.05).mean())
            yield {"what": "permutation test, finds a difference (Student's t would)", **row, "share": flipped}


def of_holm(runs: int, generator: np.random.Generator) -> Iterator[Row]:
    """Four methods against one baseline, 10 seeds: how often any that gains nothing is called better or worse."""
    n = 10
    for name, gains in (("no method gains", (0, 0, 0, 0)), ("two of four gain 1.5 SD", (1.5, 1.5, 0, 0))):
        scores = generator.standard_normal((runs, 5, n))
        p = sign_flip_p(scores[:, 1:] - scores[:, :1] + np.array(gains)[:, None])
        null = np.array(gains) == 0
        corrected = np.array([holm(row.tolist()) for row in p], dtype=np.float64)
        for how, values in (("Holm", corrected), ("not corrected", p)):
            wrong = float((values[:, null] <= 0.05).any(axis=1).mean())
            row = {"what": f"four methods, any false alarm, {how}", "world": name, "seeds": n, "examples": None}
            row |= {"runs": runs, "share": wrong}
            yield {**row, "bounds": [0, 0.065]} if how == "Holm" else row


# -- over data sets --------------------------------------------------------------------------------------------------


def middle_of(means: np.ndarray, sds: np.ndarray) -> float:
    """Interquartile mean of an equal mixture of normals."""
    quantiles = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    return float(stats.trim_mean((means[:, None] + sds[:, None] * quantiles).ravel(), 0.25))


def of_many_data_sets(runs: int, generator: np.random.Generator) -> Iterator[Row]:
    """Data sets whose seeds matter unequally (SD .3 to 2) and where the method gains from .5 to 1.5 of these SDs."""
    for cells, n in ((4, 5), (4, 10), (8, 3)):
        sds, gains = np.geomspace(0.3, 2, cells), np.linspace(0.5, 1.5, cells)
        points, deviations, percentile = [], [], []
        for _ in range(runs):
            values = sds[:, None, None] * generator.standard_normal((cells, 2, n))
            values[:, OWN] += (gains * sds)[:, None]
            table = {
                str(cell): {name: dict(enumerate(scores)) for name, scores in zip("ab", pair, strict=True)}
                for cell, pair in enumerate(values)
            }
            found = compare_across(table, baseline="b")
            one, units = found.gains["a"], np.array(list(found.units.values()))
            assert one.deviations is not None
            both = np.sqrt(2) * sds
            truth = middle_of(gains * sds, both)
            points.append(holds(one.points.low, one.points.high, truth))
            chosen = generator.integers(n, size=(500, cells, n))
            drawn = np.take_along_axis((values[:, OWN] - values[:, BASELINE])[None], chosen, axis=2).reshape(500, -1)
            low, high = np.quantile(stats.trim_mean(drawn, 0.25, axis=1), [0.025, 0.975])
            percentile.append(holds(low, high, truth))
            truth = middle_of(gains * sds / units, both / units)
            deviations.append(holds(one.deviations.low, one.deviations.high, truth))
        for name, held in (("points", points), ("deviations", deviations)):
            yield coverage(f"interquartile mean, {name}", f"{cells} data sets", n, None, held, bounds=[0.93, 0.97])
        yield coverage("interquartile mean, points, percentile bootstrap", f"{cells} data sets", n, None, percentile)


# -- what else was tried ---------------------------------------------------------------------------------------------


def reaches(seeds: np.ndarray, units: np.ndarray, rest: np.ndarray, n: int, m: int) -> dict[str, np.ndarray]:
    """How far intervals over seeds and examples reach from the mean, times the root of nm.

    Args:
        seeds, units, rest: (draws,), mean squares of tables of n seeds and m units.
        n, m: as said.
    """

    def student(variance: np.ndarray, df: np.ndarray | float) -> np.ndarray:
        return stats.t.ppf(0.975, df) * np.sqrt(variance)

    more = np.maximum(units - rest, 0)
    total, alone = seeds + more, student(seeds, n - 1)
    both = total**2 / (seeds**2 / (n - 1) + more**2 / (m - 1))
    widest = np.maximum(np.maximum(seeds + units - rest, seeds), units)
    three = widest**2 / (seeds**2 / (n - 1) + units**2 / (m - 1) + rest**2 / ((n - 1) * (m - 1)))
    return {
        "taken": np.maximum(student(total, both), alone),
        "without the floor of the interval over seeds": student(total, both),
        "degrees of freedom of the seeds' mean square only (Hillis)": student(total, (n - 1) * (total / seeds) ** 2),
        "largest of the sum and each mean square, Satterthwaite of all three": student(widest, three),
        "squares of two intervals added": np.sqrt(alone**2 + student(more, m - 1) ** 2),
    }


def of_other_formulas(runs: int, generator: np.random.Generator) -> Iterator[Row]:
    """Effects of all sizes; normal, so that mean squares are chi-square: the least and the most a formula holds."""
    runs *= 50
    for n in (2, 3, *SEEDS):
        for m in (20, 277):
            shares: dict[str, list[float]] = {}
            for of_seeds in (0, 0.5, 2, 10, 100):  # variances of the mean, in that of the rest
                for of_units in (0, 1, 5, 30, 100):
                    seeds = (1 + of_seeds) * generator.chisquare(n - 1, runs) / (n - 1)
                    units = (1 + of_units) * generator.chisquare(m - 1, runs) / (m - 1)
                    rest = generator.chisquare((n - 1) * (m - 1), runs) / ((n - 1) * (m - 1))
                    off = np.abs(generator.normal(0, np.sqrt(1 + of_seeds + of_units), runs))
                    for name, reach in reaches(seeds, units, rest, n, m).items():
                        shares.setdefault(name, []).append(float((off <= reach).mean()))
            for name, held in shares.items():
                for end, share in (("least", min(held)), ("most", max(held))):
                    row = {
                        "what": f"formulas for test sets like it: the {end} that each holds",
                        "world": name,
                        "seeds": n,
                    }
                    yield {**row, "examples": m, "runs": runs, "share": share}


# -- what is written -------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[int, np.random.Generator], Iterator[Row]], ...]] = {
    "intervals": (of_worlds, of_normal_scores, of_other_scores, of_many_data_sets),
    "tests": (of_false_alarms, of_power, of_holm),
    "tried": (of_other_formulas,),
}


def misses(row: Row) -> bool:
    low, high = row.get("bounds", (0, 1))
    return not low <= row["share"] <= high


def page(results: dict[str, list[Row]], command: str) -> str:
    """The figures as Markdown: a table for each kind, with a row a world and a column a number of seeds."""
    lines = ["# Simulated comparisons: the figures", "", f"Written by `{command}`. All in per cent.", ""]
    for rows in results.values():
        for kind in dict.fromkeys(row["what"] for row in rows):
            own = [row for row in rows if row["what"] == kind]
            seeds = sorted({row["seeds"] for row in own})
            bounds = {tuple(row["bounds"]) for row in own if "bounds" in row}
            between = " to ".join(f"{100 * edge:.4g}" for edge in min(bounds)) if len(bounds) == 1 else ""
            lines += [f"## {kind[0].upper()}{kind[1:]}", "", *([f"Wanted: {between}.", ""] if between else [])]
            lines += ["| world | examples | " + " | ".join(f"{n} seeds" for n in seeds) + " |"]
            lines += ["|---|---:|" + "---:|" * len(seeds)]
            for world, m in dict.fromkeys((row["world"], row["examples"]) for row in own):
                cells = {row["seeds"]: row for row in own if (row["world"], row["examples"]) == (world, m)}
                shown = [_shown(cells[n]) if n in cells else "" for n in seeds]
                lines += [f"| {world} | {m or ''} | " + " | ".join(shown) + " |"]
            lines += [""]
    return "\n".join(lines)


def _shown(row: Row) -> str:
    wanted = f" ({100 * row['statsmodels']:.1f})" if "statsmodels" in row else ""
    return f"{100 * row['share']:.1f}{wanted}{' (!)' if misses(row) else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulated comparisons with known truth.")
    parser.add_argument("--runs", type=int, default=1000, help="simulated comparisons for each figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSON files and table.md")
    arguments = parser.parse_args()
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}"
    arguments.output.mkdir(parents=True, exist_ok=True)
    gc.freeze()  # statsmodels collects garbage for each correction; what is loaded by now is none
    results: dict[str, list[Row]] = {}
    for part, simulations in PARTS.items():
        results[part] = []
        for simulate in simulations:
            start = time.process_time()
            results[part] += simulate(arguments.runs, np.random.default_rng(arguments.seed))
            print(f"{simulate.__name__}: {time.process_time() - start:.0f} s")
        kept = {
            "command": command,
            "versions": {name: version(name) for name in ("numpy", "scipy", "statsmodels")},
            "worlds": {name: asdict(world) for name, world in (WORLDS | GROUPED).items()},
            "rows": results[part],
        }
        (arguments.output / f"{part}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "table.md").write_text(page(results, command), encoding="utf-8")
    missed = [row for rows in results.values() for row in rows if misses(row)]
    for row in missed:
        print(f"out of its bounds: {row}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

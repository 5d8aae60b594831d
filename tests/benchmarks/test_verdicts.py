"""benchmarks/verdicts.py: the truths that intervals are held against are true; the committed figures are in bounds."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "verdicts"
sys.path.insert(0, str(ROOT / "benchmarks"))

import verdicts  # noqa: E402

from hf_rat.experiments.crossed import crossed_difference, mean_squares  # noqa: E402

ALL = verdicts.WORLDS | verdicts.GROUPED


@pytest.mark.parametrize("name", ALL)
def test_the_truth_over_test_sets_is_what_many_of_them_show(name):
    """One seed and few examples, 20,000 times."""
    generator = np.random.default_rng(0)
    right = np.concatenate([verdicts.draw(ALL[name], 5000, 1, 20, generator).right for _ in range(4)])
    differences = right.mean(axis=(2, 3)) @ [1, -1]
    error = differences.std() / np.sqrt(len(differences))
    assert differences.mean() == pytest.approx(verdicts.everywhere(ALL[name]), abs=4 * error)


@pytest.mark.parametrize("name", ALL)
def test_the_truth_of_a_test_set_is_what_many_seeds_show(name):
    some = verdicts.draw(ALL[name], 1, 20_000, 20, np.random.default_rng(0))
    differences = [1, -1] @ some.right[0].mean(axis=2)
    error = differences.std() / np.sqrt(len(differences))
    assert differences.mean() == pytest.approx(some.here[0], abs=4 * error)


@pytest.mark.parametrize("score", ["F1", "Matthews"])
def test_the_truth_of_a_score_is_what_many_examples_show(score):
    world, generator = verdicts.WORLDS["seeds and examples"], np.random.default_rng(0)
    values = []
    for _ in range(150):
        right = verdicts.draw(world, 1, 1, 5000, generator).right[0, verdicts.OWN, 0]
        expected = generator.random(5000) < 0.68
        values.append({"F1": verdicts.f1, "Matthews": verdicts.matthews}[score](right == expected, expected))
    error = np.std(values) / np.sqrt(150)
    truth = verdicts.true_score(score, world, verdicts.OWN, 0.68)
    assert np.mean(values) == pytest.approx(truth, abs=4 * error)


def test_the_middle_of_a_mixture_is_what_many_of_its_numbers_show():
    means, sds = np.array([0.0, 1.0, 5.0, 1.5]), np.array([1.0, 0.5, 2.0, 3.0])
    drawn = np.sort((means + sds * np.random.default_rng(0).standard_normal((100_000, 4))).ravel())
    assert verdicts.middle_of(means, sds) == pytest.approx(drawn[100_000:300_000].mean(), abs=0.01)


@pytest.mark.parametrize("part", verdicts.PARTS)
def test_the_committed_figures_are_in_their_bounds(part):
    rows = json.loads((RESULTS / f"{part}.json").read_text(encoding="utf-8"))["rows"]
    assert [row for row in rows if row["runs"] < 1000 or verdicts.misses(row)] == []
    bounded = {(row["what"], row["seeds"]) for row in rows if "bounds" in row}
    if part == "intervals":
        for estimand in ("this test set", "test sets like it"):
            assert {seeds for what, seeds in bounded if what.startswith(f"{estimand}:")} == {5, 10, 20}
    elif part == "tests":
        assert {("permutation test, false alarms", 10), ("permutation test, false alarms", 20)} <= bounded


def test_the_formula_called_taken_is_that_of_the_package():
    """On a table of normals, where the examples' part is positive and where it is not."""
    for of_examples in (0.0, 1.0):
        table = np.random.default_rng(3).normal(size=(4, 25)) + np.random.default_rng(4).normal(0, of_examples, 25)
        found = crossed_difference(table, np.zeros((4, 25)))
        squares = [np.array([square]) for square in mean_squares(table)]
        assert verdicts.reaches(*squares, 4, 25)["taken"][0] / 10 == pytest.approx(found.high - found.mean)


def test_a_figure_that_misses_its_bounds_fails_the_script(tmp_path, monkeypatch, capsys):
    row = {"what": "coin", "world": "fair", "seeds": 5, "examples": None, "share": 0.5, "bounds": [0.93, 0.97]}
    monkeypatch.setattr(verdicts, "PARTS", {"intervals": (lambda runs, generator: iter([row]),)})
    monkeypatch.setattr(sys, "argv", ["verdicts.py", "--output", str(tmp_path)])
    assert verdicts.main() == 1
    assert "out of its bounds" in capsys.readouterr().out
    assert "| fair |  | 50.0 (!) |" in (tmp_path / "table.md").read_text(encoding="utf-8")

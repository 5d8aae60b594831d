"""The race: who is dropped, on what, and what its log says; on made-up runs."""

import json
import math
from collections import Counter

import pytest
from made_up_runs import MadeUp, methods, options

from hf_rat.experiments.experiment import Cell, Experiment
from hf_rat.experiments.method import Method
from hf_rat.experiments.pool import Pool
from hf_rat.experiments.race import gains_in_deviations, race

ENTRIES = ("fgm(epsilon=3)", "fgm(epsilon=8)", "plain", *(f"fgm(epsilon={n})" for n in (1, 7, 2, 6, 4, 5)))
CELLS = tuple(Cell(task, None, ("--task_name", task)) for task in ("rte", "mrpc", "cola"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def better_with_epsilon(o):
    noise = math.sin(int(o["seed"])) / 100
    return {"eval_accuracy": 0.5 + float(o.get("epsilon", 0)) / 100 + noise, "eval_loss": 1.0}


def go(experiment, runner, keep=2):
    with Pool(runner, experiment.jobs) as pool:
        return race(experiment, pool, keep)


def ask(output, *entries, cells=CELLS, **more):
    return Experiment(methods(*(entries or ENTRIES)), (1, 2, 3), output, ("glue",), cells, **more)


def test_the_lower_half_is_dropped_until_as_many_are_left(tmp_path):
    experiment, runner = ask(tmp_path), MadeUp(better_with_epsilon)
    left, records = go(experiment, runner)
    assert [method.entry for method in left.methods] == ["fgm(epsilon=8)", "plain", "fgm(epsilon=7)"], "as typed"
    # Nine on two tasks with two seeds; then the best four and plain on three with three, of which 2 x 2 are known.
    assert len(runner.commands) == 9 * 2 * 2 + 5 * (3 * 3 - 2 * 2)
    assert len(records) == len(runner.commands)
    told = json.loads((tmp_path / "race.json").read_text())
    assert (told["baseline"], told["keep"]) == ("plain", 2)
    first, second = told["rounds"]
    assert (first["cells"], first["seeds"], second["cells"], second["seeds"]) == (
        ["rte", "mrpc"],
        [4, 5],
        ["rte", "mrpc", "cola"],
        [4, 5, 6],
    )
    assert [row["method"] for row in first["methods"]] == [f"fgm(epsilon={n})" for n in (8, 7, 6, 5, 4, 3, 2, 1)]
    assert [row["dropped"] for row in first["methods"]] == [False] * 4 + [True] * 4
    assert [row["dropped"] for row in second["methods"]] == [False] * 2 + [True] * 2
    # By hand: all methods of a cell have the same noise, of seeds 4 and 5, hence the same deviation.
    low, high = sorted(math.sin(seed) / 100 for seed in (4, 5))
    assert first["methods"][0]["gain"] == pytest.approx(0.08 / ((high - low) / math.sqrt(2)))
    assert first["methods"][0]["scores"]["rte"] == pytest.approx(0.58 + (low + high) / 2)
    page = (tmp_path / "race.md").read_text()
    assert "## Round 2: 3 cells (rte; mrpc; cola), seeds 4, 5, 6" in page
    assert page.count("| dropped |") == 6


def test_it_looks_at_held_back_rows_with_seeds_of_its_own(tmp_path):
    runner = MadeUp(better_with_epsilon)
    go(ask(tmp_path), runner)
    for command in runner.commands:
        words = options(command)
        assert (words["do_predict"], words["validation_from_train"]) == ("false", "0.2")
        assert int(words["seed"]) > 3
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_interrupted_race_goes_on_and_ends_alike(tmp_path):
    go(ask(tmp_path / "whole"), MadeUp(better_with_epsilon))
    for interrupted in (0, 20, 36, 60):
        experiment = ask(tmp_path / str(interrupted), jobs=2)
        first, second = MadeUp(better_with_epsilon, interrupt=interrupted), MadeUp(better_with_epsilon)
        with pytest.raises(KeyboardInterrupt):
            go(experiment, first)
        go(experiment, second)
        finished = {
            tuple(json.loads(p.read_text())["command"].split()) for p in experiment.output.rglob("held-back-*.json")
        }
        assert len(finished) == 61
        counts = Counter(map(tuple, first.commands + second.commands))
        assert len(counts) == 61
        assert sum(counts.values()) <= 61 + 2, "at most what ran at the time is made again"
        for name in ("race.json", "race.md"):
            assert (experiment.output / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_one_cell_and_an_odd_number_of_methods(tmp_path):
    """Five others: three of them stay, then two; a loss is better if it is low."""
    experiment = ask(tmp_path, "plain", *(f"fgm(epsilon={n})" for n in range(1, 6)), cells=(Cell(),), score="loss")
    experiment = Experiment(experiment.methods, (1, 2), tmp_path, ("glue", "--task_name", "rte"), score="loss")
    left, _ = go(experiment, MadeUp(lambda o: {"eval_loss": float(o.get("epsilon", 9)) - int(o["seed"])}))
    assert [method.entry for method in left.methods] == ["plain", "fgm(epsilon=1)", "fgm(epsilon=2)"]
    told = json.loads((tmp_path / "race.json").read_text())
    assert [sum(not row["dropped"] for row in one["methods"]) for one in told["rounds"]] == [3, 2]
    assert told["rounds"][0]["methods"][0]["scores"] == {"": 1 - 3.5}
    assert "## Round 1: one cell, seeds 3, 4" in (tmp_path / "race.md").read_text()


def test_gains_in_deviations_by_hand():
    a, b, c = methods("plain", "fgm", "rat")
    scores = {
        Cell("one"): {a: [0.5, 0.7], b: [0.6, 0.8], c: [0.5, 0.7]},  # each variance 0.02: deviations of 0.1414
        Cell("two"): {a: [1.0, 2.0, 3.0], b: [1.0, 1.0, 1.0], c: [5.0, 5.0, 5.0]},  # variances 1, 0, 0: 0.5774
    }
    one, two = math.sqrt(0.02), math.sqrt(1 / 3)
    assert gains_in_deviations(scores, a) == pytest.approx({b: (0.1 / one - 1 / two) / 2, c: (0 + 3 / two) / 2})
    alike = {Cell(): {a: [0.5, 0.5], b: [0.4, 0.4], c: [0.5, 0.5]}}
    assert gains_in_deviations(alike, a) == {b: -1.0, c: 0.0}


def test_a_method_that_fails_is_dropped_and_told(tmp_path):
    def fragile(o):
        return None if o.get("epsilon") in (8, 6) and o["seed"] == "5" else better_with_epsilon(o)

    left, records = go(ask(tmp_path), MadeUp(fragile))
    assert [method.entry for method in left.methods] == ["plain", "fgm(epsilon=7)", "fgm(epsilon=5)"]
    assert sum(not record["finished"] for record in records.values()) == 4
    rows = {row["method"]: row for row in json.loads((tmp_path / "race.json").read_text())["rounds"][0]["methods"]}
    assert rows["fgm(epsilon=8)"]["gain"] is None
    assert rows["fgm(epsilon=8)"]["failed"] == [
        str(tmp_path / task / Method("fgm(epsilon=8)").slug / "race" / "held-back-5.log") for task in ("rte", "mrpc")
    ]
    assert "| `fgm(epsilon=8)` | failed | dropped |" in (tmp_path / "race.md").read_text()


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (lambda o: "epsilon" not in o, r"--race: the baseline plain failed in round 1, see .*held-back-4.log"),
        (lambda o: "epsilon" in o, r"--race: every method but the baseline failed in round 1, see "),
    ],
)
def test_a_race_that_cannot_go_on(tmp_path, fails, message):
    with pytest.raises(ValueError, match=message):
        go(ask(tmp_path), MadeUp(lambda o: None if fails(o) else better_with_epsilon(o)))

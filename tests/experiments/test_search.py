"""The search: on made-up runs whose score is a known function of the values, and once for real."""

import json
import math
from collections import Counter

import pytest
from made_up_runs import MadeUp, methods, options

from hf_rat.experiments.experiment import Cell, Experiment
from hf_rat.experiments.pool import Pool
from hf_rat.experiments.search import search

RAT = "rat(epsilon={0.001..10 log}, alpha={0.5, 1, 4})"
VAT = "vat(epsilon={1, 2}) --label_smoothing_factor {0, 0.1}"
BASE = ("glue", "--task_name", "rte", "--do_predict", "--learning_rate", "{1e-6..1e-3 log}")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)  # the files of a test need not outlive the machine


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    experiment = ask(tmp_path_factory.mktemp("whole"), "plain", RAT, VAT)
    go(experiment, MadeUp(results), 8)
    return told(experiment)


def score(o):
    """Best at epsilon 0.1, alpha 1 and a learning rate of 1e-4."""
    value = 0.9 - 0.02 * (math.log10(float(o["learning_rate"])) + 4) ** 2
    if o["name"] == "rat":
        value -= 0.03 * (math.log10(o["epsilon"]) + 1) ** 2 + 0.05 * (o["alpha"] != 1)
    return value


def results(o):
    return {"eval_loss": 1 - score(o), "eval_accuracy": score(o), "eval_runtime": 1.0}


def ask(output, *entries, seeds=(1, 2, 3), base=BASE, **more):
    return Experiment(methods(*entries), seeds, output, base, **more)


def go(experiment, runner, trials):
    with Pool(runner, experiment.jobs) as pool:
        return search(experiment, pool, trials)


def told(experiment):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(experiment.output.rglob("search.json"))}


def test_the_optimum_is_found_and_told(tmp_path):
    experiment = ask(tmp_path, "plain", RAT)
    found, records = go(experiment, MadeUp(results), 30)
    plain, rat = (told(experiment)[method.slug] for method in experiment.methods)
    assert rat["ranges"] == {
        "epsilon": "{0.001..10 log}",
        "alpha": "{0.5, 1, 4}",
        "learning_rate": "{1e-06..0.001 log}",
    }
    # 30 of a log-uniform sampling alone come within these bounds in all three once in a dozen searches.
    assert 0.05 < float(rat["chosen"]["epsilon"]) < 0.2
    assert rat["chosen"]["alpha"] == "1"
    assert 5e-5 < float(rat["chosen"]["learning_rate"]) < 2e-4
    assert 5e-5 < float(plain["chosen"]["learning_rate"]) < 2e-4
    for one in (plain, rat):
        assert (one["trials"], len(one["log"])) == (30, 30)
        best = max(one["log"], key=lambda entry: entry["score"])
        assert list(one["chosen"].values()) == best["values"]
        assert one["held_back"]["eval_accuracy"] == best["score"]
        assert one["held_back"]["eval_loss"] == pytest.approx(1 - best["score"])
        assert "eval_runtime" not in one["held_back"]
    assert len(records) == 60
    assert all(record["finished"] for record in records.values())
    values = options(found.run(experiment.methods[1], Cell(), 2).command)
    assert (repr(values["epsilon"]), values["learning_rate"]) == (
        rat["chosen"]["epsilon"],
        rat["chosen"]["learning_rate"],
    )


def test_trials_see_no_test_split_and_the_final_runs_see_the_whole(tmp_path):
    runner = MadeUp(results)
    experiment = ask(tmp_path, RAT)
    found, _ = go(experiment, runner, 6)
    for command in runner.commands:
        words = options(command)
        assert words["do_predict"] == "false"
        assert (words["validation_from_train"], words["do_train"], words["do_eval"]) == ("0.2", "true", "true")
        assert "{" not in " ".join(command)
    final = found.plan()
    assert [(run.seed, run.method.entry) for run in final] == [(1, RAT), (2, RAT), (3, RAT)]
    for run in final:
        assert run.folder == tmp_path / experiment.methods[0].slug / f"seed-{run.seed}"
        assert options(run.command)["do_predict"] == "true"
        assert "validation_from_train" not in options(run.command)
    assert not {int(options(command)["seed"]) for command in runner.commands} & {1, 2, 3}
    assert not list(tmp_path.rglob("*.safetensors")), "the scores are what is kept of a trial"
    assert len(list(tmp_path.rglob("all_results.json"))) == 6


def test_a_share_of_one_s_own_is_for_the_trials(tmp_path):
    runner = MadeUp(results)
    base = (*BASE, "--validation_from_train", "0.1")
    found, _ = go(ask(tmp_path / "predicts", RAT, base=base), runner, 2)
    assert {options(command)["validation_from_train"] for command in runner.commands} == {"0.1"}
    assert options(found.plan()[0].command)["validation_from_train"] == "0.1", "the test split is what reports"
    found, _ = go(ask(tmp_path / "evaluates", RAT, base=[word for word in base if word != "--do_predict"]), runner, 2)
    assert "validation_from_train" not in options(found.plan()[0].command), "the validation split is what reports"


def test_every_method_has_as_many_trials_and_few_settings_are_repeated_with_further_seeds(tmp_path):
    """Of VAT's four settings the first seed likes one, and the mean over both seeds another."""
    base = ("glue", "--task_name", "rte")

    def noisy(o):
        lucky = o["name"] == "vat" and o["epsilon"] == 1 and o["label_smoothing_factor"] == "0" and o["seed"] == "12"
        good = o["name"] == "vat" and o["epsilon"] == 2 and o["label_smoothing_factor"] == "0.1"
        return {"eval_accuracy": 0.9 if lucky else 0.8 if good else 0.5}

    experiment = ask(tmp_path, "plain", VAT, "rat(epsilon={0.1..1})", seeds=(11, 5), base=base)
    runner = MadeUp(noisy)
    go(experiment, runner, 8)
    assert Counter(options(command)["name"] for command in runner.commands) == {"plain": 8, "vat": 8, "rat": 8}
    plain, vat, rat = (told(experiment)[method.slug] for method in experiment.methods)
    assert [entry["seed"] for entry in plain["log"]] == list(range(12, 20)), "after the largest of the comparison's"
    assert (plain["trials"], plain["settings"], plain["chosen"]) == (8, 1, {})
    assert plain["held_back"] == {"eval_accuracy": 0.5}
    assert (vat["trials"], vat["settings"]) == (8, 4)
    assert sorted((*entry["values"], entry["seed"]) for entry in vat["log"]) == [
        (epsilon, smoothing, seed) for epsilon in "12" for smoothing in ("0", "0.1") for seed in (12, 13)
    ]
    assert vat["chosen"] == {"epsilon": "2", "label_smoothing_factor": "0.1"}, "0.8 twice, not 0.9 and 0.5"
    assert vat["held_back"] == {"eval_accuracy": 0.8}
    assert rat["settings"] == 8


@pytest.mark.parametrize("interrupted", [0, 5, 9, 12, 15, 23])
def test_an_interruption_at_any_trial_changes_nothing(tmp_path, uninterrupted, interrupted):
    experiment = ask(tmp_path, "plain", RAT, VAT)
    first, second = MadeUp(results, interrupt=interrupted), MadeUp(results)
    with pytest.raises(KeyboardInterrupt):
        go(experiment, first, 8)
    go(experiment, second, 8)
    assert told(experiment) == uninterrupted
    finished = [c[:-1] for c in first.commands[:interrupted]]
    assert not [command for command in second.commands if command[:-1] in finished], "no finished trial is made again"
    third = MadeUp(results)
    go(experiment, third, 8)
    assert third.commands == []


def test_the_number_of_jobs_changes_nothing(tmp_path):
    found = []
    for jobs in (1, 3):
        experiment = ask(tmp_path / str(jobs), "plain", RAT, VAT, "vat(epsilon={0.1..3})", jobs=jobs)
        go(experiment, MadeUp(results, hurry=False), 9)
        found.append(told(experiment))
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_more_trials_go_on_where_fewer_ended(tmp_path):
    once, twice = ask(tmp_path / "once", RAT, VAT), ask(tmp_path / "twice", RAT, VAT)
    go(once, MadeUp(results), 12)
    go(twice, MadeUp(results), 7)
    runner = MadeUp(results)
    go(twice, runner, 12)
    assert len(runner.commands) == 10
    assert told(once) == told(twice)


def test_each_cell_chooses_for_itself(tmp_path):
    def by_task(o):
        return {"eval_accuracy": 0.9 - abs(o["epsilon"] - {"rte": 1, "mrpc": 3}[o["task_name"]]) / 10}

    cells = tuple(Cell(task, None, ("--task_name", task)) for task in ("rte", "mrpc"))
    experiment = ask(tmp_path, "fgm(epsilon={1, 2, 3})", cells=cells, base=("glue",))
    found, _ = go(experiment, MadeUp(by_task), 3)
    (method,) = experiment.methods
    assert [options(found.run(method, cell, 1).command)["epsilon"] for cell in cells] == [1, 3]
    assert (tmp_path / "mrpc" / method.slug / "search.json").exists()


def test_lower_is_better_for_a_loss_and_the_score_may_be_named(tmp_path):
    def crossed(o):
        return {"eval_loss": o["epsilon"], "eval_accuracy": o["epsilon"] / 10, "eval_f1": 0.5 - o["epsilon"] / 10}

    for name, best in ((None, "3"), ("accuracy", "3"), ("loss", "1"), ("f1", "1")):
        experiment = ask(
            tmp_path / str(name), "fgm(epsilon={1, 2, 3})", score=name, base=("glue", "--task_name", "rte")
        )
        go(experiment, MadeUp(crossed), 3)
        (one,) = told(experiment).values()
        assert one["chosen"] == {"epsilon": best}
    with pytest.raises(ValueError, match=r"--score f2: no run has it; there are: loss, accuracy, f1"):
        go(ask(tmp_path / "f2", "fgm(epsilon={1, 2, 3})", score="f2"), MadeUp(crossed), 3)


def test_what_fails_is_not_chosen_and_stops_no_other(tmp_path):
    def fragile(o):
        broken = o["name"] == "vat" or (o["name"] == "rat" and float(o["epsilon"]) > 0.01)
        return None if broken else {"eval_accuracy": math.nan if o["seed"] == "6" else score(o)}

    experiment = ask(tmp_path, "plain", RAT, VAT)
    found, records = go(experiment, MadeUp(fragile), 15)
    _, rat, vat = (told(experiment)[method.slug] for method in experiment.methods)
    assert float(rat["chosen"]["epsilon"]) <= 0.01
    assert vat["chosen"] is vat["held_back"] is None
    assert {run.method.slug for run in found.plan()} == {experiment.methods[0].slug, experiment.methods[1].slug}
    failed = [run for run, record in records.items() if not record["finished"]]
    assert {run.method.entry for run in failed} == {RAT, VAT}
    # What failed is tried again, as with any run.
    runner = MadeUp(results)
    go(experiment, runner, 15)
    assert len(runner.commands) == len(failed)


def test_a_later_flag_overrides_a_range(tmp_path):
    experiment = ask(tmp_path, "plain --learning_rate 1e-5", "fgm --learning_rate {1e-4, 2e-4}", "vat")
    go(experiment, MadeUp(results), 2)
    fixed, own, shared = (told(experiment)[method.slug]["ranges"] for method in experiment.methods)
    assert (fixed, own) == ({}, {"learning_rate": "{1e-4, 2e-4}"})
    assert shared == {"learning_rate": "{1e-06..0.001 log}"}


def test_another_search_in_the_same_folder_is_refused_before_anything_runs(tmp_path):
    go(ask(tmp_path, RAT), MadeUp(results), 2)
    runner = MadeUp(results)
    with pytest.raises(ValueError, match=r"search.json is of other ranges .*give another --output_dir"):
        go(ask(tmp_path, "plain", RAT, base=(*BASE[:-1], "{1e-6, 1e-3}")), runner, 2)
    with pytest.raises(ValueError, match=r"trial-01.json was made by another command"):
        go(ask(tmp_path, "plain", RAT, base=(*BASE, "--fp16")), runner, 2)
    (tmp_path / ask(tmp_path, RAT).methods[0].slug / "search.json").write_text('{"log": [')
    with pytest.raises(ValueError, match=r"search.json cannot be read .*give another --output_dir"):
        go(ask(tmp_path, "plain", RAT), runner, 2)
    assert not runner.commands


def test_without_optuna_spans_are_refused_and_choices_searched(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ValueError, match=r"needs optuna: pip install 'hf-rat\[search\]'"):
        go(ask(tmp_path, RAT), MadeUp(results), 2)
    found, _ = go(
        ask(tmp_path, VAT, base=("glue", "--task_name", "rte")), MadeUp(lambda o: {"eval_f1": o["epsilon"]}), 4
    )
    assert options(found.plan()[0].command)["epsilon"] == 2

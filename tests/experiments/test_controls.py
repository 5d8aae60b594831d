"""The controls: plain for the time of the dearest method, and plain with its epochs chosen; on made-up runs."""

import dataclasses
import json
import math

import pytest
from made_up_runs import MadeUp, methods, options

from hf_rat.experiments.controls import controls
from hf_rat.experiments.experiment import Cell, Experiment, Setting
from hf_rat.experiments.pool import Pool

BASE = ("glue", "--task_name", "rte", "--num_train_epochs", "4")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def results(o):
    """Plain takes 9 and 11 s, fgm 20, rat 30 and 32: 3.1 times as long. The best number of epochs is 8."""
    epochs, seed = float(o.get("num_train_epochs", 3)), int(o["seed"])
    seconds = {"plain": 8 + seed, "fgm": 20, "rat": 28 + 2 * seed}[o["name"]]
    score = 0.8 - abs(math.log2(epochs / 8)) / 10
    return {"eval_accuracy": score, "train_runtime": seconds, "epoch": epochs}


def go(experiment, runner):
    with Pool(runner, experiment.jobs) as pool:
        records = pool.make_missing(experiment.plan())
        before = len(runner.commands)
        own, made = controls(experiment, pool, records)
    return own, made, [options(command) for command in runner.commands[before:]]


def ask(output, *entries, base=BASE, seeds=(1, 3), **more):
    return Experiment(methods(*(entries or ("plain", "fgm", "rat(epsilon=1)"))), seeds, output, base, **more)


def test_both_by_hand(tmp_path):
    own, made, commands = go(ask(tmp_path), MadeUp(results))
    time, chosen = own.methods
    assert time.shown == "plain for the time of rat(epsilon=1) (12.8 epochs, 3.20 x 4)", "32 s for 10"
    assert chosen.shown == "plain, epochs chosen on held-back rows"
    assert [o["name"] for o in commands] == ["plain"] * 8
    trials, final = commands[:4], commands[4:]
    assert sorted(float(o["num_train_epochs"]) for o in trials) == [1, 2, 4, 8]
    assert {(o["seed"], o["validation_from_train"], o["do_predict"]) for o in trials} == {("4", "0.2", "false")}
    assert sorted((o["seed"], o["num_train_epochs"]) for o in final) == [
        ("1", "12.8"),
        ("1", "8"),
        ("3", "12.8"),
        ("3", "8"),
    ]
    assert not any("validation_from_train" in o for o in final)
    told = json.loads((tmp_path / chosen.slug / "search.json").read_text())
    assert (told["trials"], told["chosen"]) == (4, {"num_train_epochs": "8"})
    assert told["held_back"]["eval_accuracy"] == pytest.approx(0.8)
    record = json.loads((tmp_path / time.slug / "seed-3.json").read_text())
    assert (record["method"], record["label"], record["finished"]) == ("plain", time.shown, True)
    assert len(made) == 8


def test_the_figure_stays_when_seeds_are_added(tmp_path):
    go(ask(tmp_path), MadeUp(results))
    own, _, commands = go(ask(tmp_path, seeds=(1, 3, 20)), MadeUp(results))
    assert own.methods[0].shown == "plain for the time of rat(epsilon=1) (12.8 epochs, 3.20 x 4)"
    assert sorted((o["seed"], o["num_train_epochs"]) for o in commands) == [("20", "12.8"), ("20", "8")]
    own, _, _ = go(ask(tmp_path, "plain", "fgm"), MadeUp(results))
    assert own.methods[0].shown == "plain for the time of fgm (8 epochs, 2.00 x 4)", "another one is the dearest"


@pytest.mark.parametrize(
    ("flags", "flag", "time", "trials"),
    [
        ((), "num_train_epochs", "9.6", ["0.75", "1.5", "3", "6"]),
        (("--max_steps", "50"), "max_steps", "160", ["12", "25", "50", "100"]),
        (("--max_steps", "1"), "max_steps", "3", ["1", "2"]),
        (("--max_steps", "-1", "--num_train_epochs=2"), "num_train_epochs", "6.4", ["0.5", "1", "2", "4"]),
    ],
)
def test_where_the_length_comes_from(tmp_path, flags, flag, time, trials):
    """Without a flag it is what the runs say that they did."""
    experiment = ask(tmp_path, base=("glue", "--task_name", "rte", *flags))
    own, _, commands = go(experiment, MadeUp(results))
    assert options(own.run(own.methods[0], Cell(), 1).command)[flag] == time
    tried = {o[flag] for o in commands if "validation_from_train" in o}
    assert sorted(tried, key=float) == trials


def test_a_file_of_flags_is_read(tmp_path):
    (tmp_path / "flags.yaml").write_text("task_name: rte\nnum_train_epochs: 5\n")
    own, _, _ = go(ask(tmp_path / "out", base=("glue", str(tmp_path / "flags.yaml"))), MadeUp(results))
    assert own.methods[0].shown == "plain for the time of rat(epsilon=1) (16 epochs, 3.20 x 5)"


def test_over_cells_the_ratio_is_one_and_the_epochs_are_chosen_for_each(tmp_path):
    def by_task(o):
        short = o["task_name"] == "rte"
        seconds = {"plain": 10, "fgm": 20 if short else 80}[o["name"]]
        epochs = float(o["num_train_epochs"])
        return {"eval_accuracy": epochs if short else 1 / epochs, "train_runtime": seconds, "epoch": epochs}

    cells = (
        Cell("rte", None, ("--task_name", "rte")),
        Cell("mrpc", None, ("--task_name", "mrpc", "--num_train_epochs", "2")),
    )
    experiment = ask(tmp_path, "plain", "fgm", base=("glue", "--num_train_epochs", "4"), cells=cells)
    own, _, _ = go(experiment, MadeUp(by_task))
    time, chosen = own.methods
    assert time.shown == "plain for the time of fgm (4.00 x the steps)", "the geometric mean of 2 and 8"
    lengths = [[options(own.run(m, cell, 1).command)["num_train_epochs"] for cell in cells] for m in (time, chosen)]
    assert lengths == [["16", "8"], ["8", "0.5"]]


def test_values_that_a_search_chose_are_kept(tmp_path):
    experiment = ask(tmp_path, "plain --dropout {0.1, 0.3}", "fgm")
    plain, fgm = experiment.methods
    chosen = {(Cell(), plain): Setting((*BASE, "--dropout", "0.3"), "plain"), (Cell(), fgm): Setting(BASE, "fgm")}
    own, _, commands = go(dataclasses.replace(experiment, chosen=chosen), MadeUp(results))
    assert {o["dropout"] for o in commands} == {"0.3"}
    assert own.methods[0].entry == plain.entry


def test_without_a_dearer_method_there_is_no_control_for_time(tmp_path):
    own, _, _ = go(ask(tmp_path, "plain"), MadeUp(results))
    assert [method.shown for method in own.methods] == ["plain, epochs chosen on held-back rows"]


def test_which_one_is_plain_and_that_it_must_have_finished(tmp_path):
    assert ask(tmp_path, "fgm", "rat").plain is None
    tuned = ask(tmp_path, "plain", "fgm", "plain --dropout 0.3", baseline="plain --dropout 0.3")
    assert tuned.plain == tuned.methods[2]
    with pytest.raises(ValueError, match="--controls: plain has not finished"):
        go(ask(tmp_path / "failed"), MadeUp(lambda o: None if o["name"] == "plain" else results(o)))

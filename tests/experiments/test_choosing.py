"""Comparisons with a search, a race or controls, from the command line on: what is refused, planned and told."""

import csv
import json
from collections import Counter

import pytest
from made_up_runs import MadeUp, options

from hf_rat.cli.compare import main, parse
from hf_rat.data.generated_reviews import generated_reviews
from hf_rat.experiments import processes
from hf_rat.experiments.choosing import planned
from hf_rat.experiments.compare import compare

RTE = "-- glue --task_name rte"
RAT = "rat(epsilon={0.1..1~log})"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def words(line):
    return [word.replace("~", " ") for word in line.split()]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"--methods plain {RAT} {RTE}", "the range {0.1..1 log} of epsilon needs --trials N"),
        (f"--methods plain {RTE} --learning_rate {{1e-5, 5e-5}}", "the range {1e-5, 5e-5} of learning_rate needs"),
        (f"--methods plain fgm --trials 3 {RTE}", "--trials 3: nothing has a range to choose from"),
        (f"--methods plain {RAT} --trials 0 {RTE}", "--trials 0: at least 1"),
        (f"--methods plain rat(epsilon={{1}}) --trials 3 {RTE}", "the range '{1}' of epsilon needs two values"),
        (f"--methods plain raat(epsilon={{1..2}}) --trials 3 {RTE}", "unknown regularizer 'raat'"),
        (f"--methods plain {RAT}~--lerning_rate~{{1,2}} --trials 3 {RTE}", "did you mean --learning_rate"),
        (f"--methods plain {RAT} --trials 3 {RTE} --lerning_rate {{1..2}}", "did you mean --learning_rate"),
        (f"--methods plain {RAT} --trials 3 {RTE} --seed {{1,2}}", "--seed is set by compare"),
        (f"--methods plain {RAT} --trials 3", "--trials holds back training rows, which the built-in example cannot"),
        (f"--methods plain {RAT} --trials 3 {RTE} --submission_dir s", "--trials: --submission_dir is of one run"),
        (f"--methods plain fgm rat {RTE} --race", "--race"),
        (f"--methods plain fgm rat --race {RTE}", "--race 2: there are 2 methods beside the baseline"),
        (f"--methods plain fgm rat --race 0 {RTE}", "--race 0: there are 2 methods"),
        ("--methods plain fgm rat --race 1", "--race holds back training rows"),
        (f"--methods plain fgm {RAT} --race 1 --trials 2 {RTE}", "--race takes no ranges, and there is {0.1..1 log}"),
        (f"--methods fgm rat --controls {RTE}", "--methods has no plain: add it"),
        ("--methods plain rat --controls", "--controls holds back training rows"),
    ],
)
def test_what_makes_no_sense_is_one_line(line, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(processes.Processes, "__call__", lambda *_: pytest.fail("nothing may run"))
    assert main(["--seeds", "1", "2", "--output_dir", str(tmp_path / "out"), *words(line)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def score(o):
    seconds = {"plain": 10, "fgm": 20, "vat": 15, "rat": 30}[o["name"]] * float(o.get("num_train_epochs", 4)) / 4
    good = {"plain": 0.5, "fgm": 0.7, "vat": 0.6, "rat": 0.8 - abs(float(o.get("epsilon") or 0) - 0.5) / 10}[o["name"]]
    results = {"eval_accuracy": good + int(o["seed"]) / 1000, "train_runtime": seconds, "epoch": 4.0}
    return results | ({"test_accuracy": good - 0.1} if o.get("do_predict") == "true" else {})


def go(line, output, runner):
    experiment = parse(["--output_dir", str(output), *words(line)])
    compare(experiment, "hf-rat compare ...", runner)
    return experiment


def test_a_search_and_controls_in_one_command(tmp_path, capsys):
    line = f"--methods plain {RAT} --trials 6 --controls --seeds 1 2 {RTE} --do_predict --num_train_epochs 4"
    line += " --learning_rate {1e-5, 1e-4}"
    experiment = parse(["--output_dir", str(tmp_path), *words(line)])
    assert [len(found) if isinstance(found, list) else found for found in planned(experiment)] == [12 + 4 + 8, 0]
    runner = MadeUp(score)
    go(line, tmp_path, runner)
    made = [options(command) for command in runner.commands]
    assert len(made) == 24
    assert Counter(o["name"] for o in made if "validation_from_train" in o) == {"plain": 6 + 4, "rat": 6}
    final = [o for o in made if "validation_from_train" not in o]
    assert all(o["do_predict"] == "true" for o in final)
    assert len({o["epsilon"] for o in final if o["name"] == "rat"}) == 1
    told = json.loads((tmp_path / "results.json").read_text())["methods"]
    assert [row["method"] for row in told] == [
        "plain",
        RAT.replace("~", " "),
        f"plain for the time of {RAT.replace('~', ' ')} (12 epochs, 3.00 x 4)",
        "plain, epochs chosen on held-back rows",
    ]
    assert all(row["seeds"] == [1, 2] for row in told)
    assert planned(experiment) == ([], 24)
    again = MadeUp(score)
    capsys.readouterr()
    go(line, tmp_path, again)
    assert again.commands == []
    assert "runs:" not in capsys.readouterr().out


def test_a_race_in_one_command(tmp_path):
    line = f"--methods vat plain rat(epsilon=0.5) fgm --race 1 --seeds 1 2 {RTE}"
    experiment = parse(["--output_dir", str(tmp_path), *words(line)])
    # Two seeds of four, three of three (vat and the next one stand for those that stay), and two of two.
    assert len(planned(experiment)[0]) == 4 * 2 + 3 * 1 + 2 * 2
    runner = MadeUp(score)
    go(line, tmp_path, runner)
    assert Counter(options(command)["name"] for command in runner.commands) == {
        "plain": 3 + 2,
        "rat": 3 + 2,
        "fgm": 3,
        "vat": 2,
    }
    told = json.loads((tmp_path / "results.json").read_text())["methods"]
    assert [row["method"] for row in told] == ["plain", "rat(epsilon=0.5)"]
    assert (tmp_path / "race.md").exists()


def test_an_interruption_in_any_phase_loses_nothing(tmp_path):
    line = f"--methods plain {RAT} --trials 4 --controls --seeds 1 2 {RTE} --num_train_epochs 4"
    go(line, tmp_path / "whole", MadeUp(score))
    for interrupted in (4, 9, 13, 17):
        output = tmp_path / str(interrupted)
        first, second = MadeUp(score, interrupt=interrupted), MadeUp(score)
        with pytest.raises(KeyboardInterrupt, match="to go on, give the same command again"):
            go(line, output, first)
        go(line, output, second)
        assert len(first.commands) - 1 + len(second.commands) == 8 + 4 + 8
        scores = [
            json.loads((folder / "results.json").read_text())["methods"] for folder in (tmp_path / "whole", output)
        ]
        assert [row["scores"] for row in scores[0]] == [row["scores"] for row in scores[1]]


def test_what_fails_in_a_phase_is_told_after_the_table(tmp_path):
    line = f"--methods plain {RAT} --trials 3 --controls --seeds 1 2 {RTE} --num_train_epochs 4"
    with pytest.raises(ValueError, match=r"^2 of 10 runs failed: plain, seed 1 .*; plain, seed 2"):
        go(line, tmp_path, MadeUp(lambda o: None if o["name"] == "plain" and o["seed"] in "12" else score(o)))
    assert [len(row["seeds"]) for row in json.loads((tmp_path / "results.json").read_text())["methods"]] == [0, 2]


@pytest.mark.slow
def test_a_tiny_search_for_real(tmp_path):
    """A table of generated rows, trials in processes of their own, the test split scored in the last runs alone."""
    rows = generated_reviews(seed=1)
    for name, split in (("train", "train"), ("validation", "validation"), ("test", "validation")):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"])
            table.writerows([row["text"], ["bad", "good"][row["label"]]] for row in rows[split].select(range(120)))
    files = [word for name in ("train", "validation", "test") for word in (f"--{name}_file", f"{tmp_path}/{name}.csv")]
    line = [
        *words(f"--methods plain {RAT} --trials 2 --seeds 1 --jobs 2 --output_dir {tmp_path}/out -- textcls"),
        *files,
    ]
    line += words("--do_train --do_eval --do_predict --num_train_epochs 1 --embedding_size 8 --min_count 1 --use_cpu")
    line += ["--learning_rate", "{1e-3,", "1e-2}", "--report_to", "none"]
    assert main(line) == 0, "\n".join(log.read_text() for log in tmp_path.rglob("*.log"))
    for method in ("plain", "rat-epsilon-0.1..1-log"):
        told = json.loads((tmp_path / "out" / method / "search.json").read_text())
        assert told["trials"] == 2
        assert 0 <= told["held_back"]["eval_accuracy"] <= 1
        trial = json.loads((tmp_path / "out" / method / "trials" / "trial-01.json").read_text())
        assert (trial["results"]["train_samples"], trial["results"]["eval_samples"]) == (96, 24)
        assert not any(name.startswith("test_") for name in trial["results"])
        final = json.loads((tmp_path / "out" / method / "seed-1.json").read_text())
        assert (final["results"]["train_samples"], final["results"]["test_samples"]) == (120, 120)
        assert f"--learning_rate {told['chosen']['learning_rate']}" in final["command"]
    assert main(line) == 0

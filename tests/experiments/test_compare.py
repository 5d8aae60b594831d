"""hf-rat compare: what is run, what is kept, and that mean and standard deviation are what they say."""

import errno
import json
import math
import os
import signal
import threading

import pytest

from hf_rat.cli.compare import main, parse
from hf_rat.experiments import processes
from hf_rat.experiments.compare import compare
from hf_rat.experiments.experiment import Cell, Experiment
from hf_rat.experiments.method import Method
from hf_rat.experiments.words import without


class FakeRunner:
    """Writes all_results.json as a run would, and remembers what it was called with."""

    def __init__(self, results=None, fails=lambda options: False):
        self.calls, self.fails = [], fails
        self.results = results or (lambda options: {"eval_accuracy": int(options["--seed"]) / 10, "eval_runtime": 3.0})

    def __call__(self, arguments, log):
        arguments = without(arguments, ["alone", "no_price"])
        options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        folder = log.with_suffix("")
        if "--max_steps" in options:  # a probe
            folder.mkdir()
            (folder / "all_results.json").write_text("{}")
            return 0
        self.calls.append((options["--reg"], int(options["--seed"])))
        assert str(folder) == options["--output_dir"]
        assert not folder.exists(), "a run starts with no folder, so that glue never refuses one that is not empty"
        folder.mkdir(parents=True)
        (folder / "something").write_text("left by a run")
        if self.fails(options):
            return 1
        (folder / "all_results.json").write_text(json.dumps(self.results(options)))
        return 0

    def stop(self):
        self.stopped = True


def go(output, methods=("plain", "rat(epsilon=0.5)"), seeds=(1, 2), base=("glue",), runner=None):
    runner = runner or FakeRunner()
    compare(Experiment(tuple(map(Method, methods)), seeds, output, base), "hf-rat compare ...", runner)
    return runner


def test_runs_every_method_with_every_seed(tmp_path):
    runner = go(tmp_path, base=("glue", "--task_name", "rte"))
    assert runner.calls == [("plain", 1), ("rat(epsilon=0.5)", 1), ("plain", 2), ("rat(epsilon=0.5)", 2)]
    record = json.loads((tmp_path / "rat-epsilon-0.5" / "seed-2.json").read_text())
    assert record["finished"]
    assert record["results"]["eval_accuracy"] == 0.2
    folder = tmp_path / "rat-epsilon-0.5" / "seed-2"
    wanted = f"hf-rat glue --task_name rte --alone --no_price --reg 'rat(epsilon=0.5)' --seed 2 --output_dir {folder}"
    assert record["command"] == wanted
    assert (folder / "all_results.json").exists()


def test_mean_and_standard_deviation(tmp_path):
    scores = {1: 0.5, 2: 0.6, 3: 0.9}
    runner = FakeRunner(
        lambda options: {"eval_f1": scores[int(options["--seed"])], "eval_samples_per_second_mm": 9, "train_loss": 1.0}
    )
    go(tmp_path, methods=("plain",), seeds=(1, 2, 3), runner=runner)
    (row,) = json.loads((tmp_path / "results.json").read_text())["methods"]
    assert row["seeds"] == [1, 2, 3]
    assert set(row["scores"]) == {"eval_f1"}, "neither counts nor training figures are scores"
    # By hand: mean 2/3, squared deviations 1/36 + 1/225 + 49/900 = 78/900, divided by n - 1 = 2.
    assert row["scores"]["eval_f1"]["mean"] == pytest.approx(2 / 3)
    assert row["scores"]["eval_f1"]["std"] == pytest.approx(math.sqrt(78 / 900 / 2))
    table = (tmp_path / "table.md").read_text()
    assert "| `plain` | 0.6667 ± 0.2082 |" in table
    assert "for seed in 1 2 3; do" in table


def test_one_seed_has_no_standard_deviation(tmp_path):
    go(tmp_path, methods=("plain",), seeds=(7,))
    assert "| `plain` | 1 | 70.00 |  - |" in (tmp_path / "table.md").read_text()


def test_finished_runs_are_kept_and_the_missing_ones_made(tmp_path):
    go(tmp_path, seeds=(1,))
    kept = (tmp_path / "plain" / "seed-1" / "all_results.json").stat().st_mtime_ns
    runner = go(tmp_path, seeds=(1, 2))
    assert runner.calls == [("plain", 2), ("rat(epsilon=0.5)", 2)]
    assert (tmp_path / "plain" / "seed-1" / "all_results.json").stat().st_mtime_ns == kept
    assert all(row["seeds"] == [1, 2] for row in json.loads((tmp_path / "results.json").read_text())["methods"])


def test_an_interrupted_run_is_made_again(tmp_path):
    class Interrupted(FakeRunner):
        """Gets Ctrl-C in its second run, after all_results.json, before the process is known to have ended well."""

        stopped = threading.Event()

        def __call__(self, arguments, log):
            super().__call__(arguments, log)
            if len(self.calls) == 2:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                assert self.stopped.wait(10)
                return -15
            return 0

        def stop(self):
            self.stopped.set()

    interrupted = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, runner=interrupted)
    assert len(interrupted.calls) == 2, "nothing begins after Ctrl-C"
    runner = go(tmp_path)
    assert runner.calls == [("rat(epsilon=0.5)", 1), ("plain", 2), ("rat(epsilon=0.5)", 2)]


def test_a_failing_run_stops_no_other_and_is_tried_again(tmp_path):
    broken = FakeRunner(fails=lambda options: options["--reg"] == "plain" and options["--seed"] == "1")
    with pytest.raises(ValueError, match=r"1 of 4 runs failed: plain, seed 1 \(.*; see .*plain.seed-1\.log"):
        go(tmp_path, runner=broken)
    assert len(broken.calls) == 4
    plain, rat = json.loads((tmp_path / "results.json").read_text())["methods"]
    assert (plain["seeds"], rat["seeds"]) == ([2], [1, 2])
    assert go(tmp_path).calls == [("plain", 1)]


def test_a_method_that_never_finishes_is_one_line(tmp_path, capsys):
    class Broken(FakeRunner):
        def __call__(self, arguments, log):
            code = super().__call__(arguments, log)
            if code:
                log.write_text("Loading\n\nerror: no such epsilon\n")
            return code

    runner = Broken(fails=lambda options: options["--reg"] != "plain")
    with pytest.raises(ValueError, match=r".*") as caught:
        go(tmp_path, methods=("plain", "rat"), seeds=(1, 2, 3), runner=runner)
    log = tmp_path / "rat" / "seed-1.log"
    assert str(caught.value) == (f"3 of 6 runs failed: rat with all 3 seeds (no such epsilon; see {log})")
    assert "rat, seed 2: FAILED after 0 s, no such epsilon (see " in capsys.readouterr().out


def test_a_record_that_cannot_be_written_stops_the_comparison(tmp_path, monkeypatch):
    """The third run finds the disk full; what is finished stays, and the next call goes on."""
    sync, runner = os.fsync, FakeRunner()

    def full(number):
        if len(runner.calls) >= 2 and "seed-2" in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        ValueError, match=r"No space left on device; 2 of 4 runs are finished and kept in .*; make room"
    ):
        go(tmp_path, runner=runner)
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.setattr(os, "fsync", sync)
    assert go(tmp_path).calls == [("plain", 2), ("rat(epsilon=0.5)", 2)]


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--output_dir .*file.out cannot be written \(Not a directory\)"):
        go(tmp_path / "file" / "out")


def test_a_folder_of_an_earlier_version_is_gone_on_with(tmp_path):
    """Its commands lack what compare adds since, and its records have fewer entries."""
    old = tmp_path / "plain" / "seed-1"
    old.mkdir(parents=True)
    command = f"hf-rat glue --reg plain --seed 1 --output_dir {old}"
    record = {"method": "plain", "seed": 1, "command": command, "finished": True, "results": {"eval_accuracy": 0.9}}
    old.with_suffix(".json").write_text(json.dumps(record))
    assert go(tmp_path).calls == [("rat(epsilon=0.5)", 1), ("plain", 2), ("rat(epsilon=0.5)", 2)]
    assert "0.5500" in (tmp_path / "table.md").read_text(), "the mean of .9 and .2"


@pytest.mark.parametrize("text", ["", "[]", '{"method": "plain"}'])
def test_what_is_no_record_is_told(tmp_path, text):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "seed-1.json").write_text(text)
    with pytest.raises(ValueError, match=r"seed-1\.json (cannot be read|is no record of a run)"):
        go(tmp_path)


def test_every_cell_has_its_folder(tmp_path):
    cells = tuple(Cell(name, "bert", ("--task_name", name)) for name in ("rte", "cola"))
    experiment = Experiment((Method("plain"),), (1,), tmp_path, ("glue",), cells)
    runner = FakeRunner()
    compare(experiment, "", runner)
    record = json.loads((tmp_path / "cola" / "bert" / "plain" / "seed-1.json").read_text())
    assert (record["dataset"], record["model"], record["finished"]) == ("cola", "bert", True)
    assert "--task_name cola" in record["command"]


def test_a_run_without_results_has_not_finished(tmp_path):
    class Empty(FakeRunner):
        def __call__(self, command, log):
            return 0

    with pytest.raises(ValueError, match="1 of 1 runs failed"):
        go(tmp_path, methods=("plain",), seeds=(1,), runner=Empty())
    assert not (tmp_path / "table.md").exists(), "there is nothing to tell"


def test_another_command_in_the_same_folder_is_refused_before_anything_runs(tmp_path):
    go(tmp_path, base=("glue", "--learning_rate", "1e-5"))
    runner = FakeRunner()
    with pytest.raises(ValueError, match=r"seed-1\.json was made by another command .*1e-5.*--output_dir"):
        go(tmp_path, base=("glue", "--learning_rate", "2e-5"), runner=runner)
    assert runner.calls == []


def test_the_comparison_may_be_moved(tmp_path):
    go(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert go(tmp_path / "there").calls == []


def test_a_folder_of_somebody_else_is_never_removed(tmp_path):
    theirs = tmp_path / "plain" / "seed-1" / "thesis.tex"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years of work")
    with pytest.raises(ValueError, match=r"seed-1 is not empty and holds no run of compare"):
        go(tmp_path)
    assert theirs.read_text() == "years of work"


def test_a_method_may_have_flags_of_its_own():
    method = Method('rdrop + 0.5 * vat(epsilon=2) --learning_rate 2e-5 --run_name "a b"')
    assert method.expression == "rdrop + 0.5 * vat(epsilon=2)"
    assert method.flags == ["--learning_rate", "2e-5", "--run_name", "a b"]
    assert method.slug == "rdrop-0.5-vat-epsilon-2-learning-rate-2e-5-run-name-a-b"
    assert (Method("plain").expression, Method("plain").flags) == ("plain", [])


def test_long_methods_keep_apart():
    long = "rat(epsilon=0.1)" + " + 0.1 * vat(epsilon=1.5)" * 5
    assert len(Method(long).slug) <= 80
    assert Method(long).slug != Method(long + " + r3f").slug


def test_arguments():
    line = ["--methods", "plain", "rat --lr 1", "--seeds", "3", "4", "--output_dir", "out", "--", "glue", "--fp16"]
    asked = parse(line)
    assert ([m.entry for m in asked.methods], asked.seeds, str(asked.output)) == (
        ["plain", "rat --lr 1"],
        (3, 4),
        "out",
    )
    assert asked.base == ("glue", "--fp16")
    assert parse(line[:-3]).base == ("glue",), "without -- it is the built-in example"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--seeds 1 --output_dir o", "--methods"),
        ("--methods plain --seeds x --output_dir o", "--seeds: invalid int value: 'x'"),
        ("--methods plain --seeds 1 1 --output_dir o", "--seeds: 1 1 holds a seed twice"),
        ("--methods rat(alpha=1) rat{alpha=1} --seeds 1 --output_dir o", "'rat-alpha-1'"),
        ("--methods plain --seeds 1 --output_dir o -- glue --seed 3", "--seed is set by compare"),
        ("--methods plain --seeds 1 --output_dir o -- glue --output_dir=x", "--output_dir=x is set by compare"),
        ("--methods plain --seeds 1 --output_dir o -- --task_name rte", "-- takes an hf-rat command"),
        ("--methods plain --seeds 1 --output_dir o --", "-- takes an hf-rat command"),
        ("--methods plain --seeds 1 --output_dir o --epochs 3", "--epochs"),
        (
            "--methods plain fgm(target=0.3) --seeds 1 --output_dir o",
            "--methods 'fgm(target=0.3)': target=0.3 with unit",
        ),
        ("--methods plain rat(epsilon=-1) --seeds 1 --output_dir o", "--methods 'rat(epsilon=-1)': rat(epsilon=-1)"),
        ("--methods plain~--run_name~' --seeds 1 --output_dir o", "cannot be read (No closing quotation)"),
    ],
)
def test_bad_arguments_are_one_line(line, message, capsys, monkeypatch):
    monkeypatch.setattr(processes.Processes, "__call__", lambda *_: pytest.fail("nothing may run"))
    assert main([word.replace("~", " ") for word in line.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.slow
def test_the_example_for_real(tmp_path):
    few = "--max_train_samples 40 --max_eval_samples 20"
    line = f"--methods plain fgm --seeds 1 --output_dir {tmp_path} -- glue --max_steps 2 {few}"
    assert main(line.split()) == 0, "\n".join(log.read_text() for log in tmp_path.glob("*/seed-1.log"))
    plain, fgm = json.loads((tmp_path / "results.json").read_text())["methods"]
    assert plain["scores"].keys() == fgm["scores"].keys() != set()
    assert all(score["mean"] >= 0 for score in plain["scores"].values())
    assert main(line.split()) == 0, "the finished runs are kept"

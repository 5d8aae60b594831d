"""Every run is a process of its own: nothing leaks out of it, and nothing outlives the comparison."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed_comparison
import pytest

from hf_rat.experiments import processes
from hf_rat.experiments.experiment import Experiment
from hf_rat.experiments.method import Method
from hf_rat.experiments.pool import Pool
from hf_rat.experiments.processes import Processes, gpus

SUPPORT = Path(killed_comparison.__file__).parent


def make(tmp_path, methods, jobs=1, seeds=(1,), devices=()):
    experiment = Experiment(tuple(map(Method, methods)), seeds, tmp_path / "out", ("quick",), jobs=jobs)
    with Pool(Processes("quick_command", (), jobs, devices), jobs) as pool:
        futures = {run: pool.submit(run) for run in experiment.plan()}
    return {run.method.entry: (run, future.result()) for run, future in futures.items()}


def test_a_run_leaves_its_record_and_its_log(tmp_path):
    run, record = make(tmp_path, ["plain"])["plain"]
    assert record == json.loads(run.record.read_text())
    assert record["finished"]
    assert record["results"]["argv"] == ["hf-rat", *run.command], "as in a process of its own"
    assert record["seconds"] > 0
    assert {"python", "torch", "transformers"} <= record["versions"].keys()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=SUPPORT, capture_output=True, text=True, check=False)
    assert (record["git"] or {}).get("commit", "") == head.stdout.strip()
    assert run.log.read_text() == "plain says hello\nand a library writes to the descriptor\ngoodbye\n"


def test_workers_of_a_run_start_as_in_a_fresh_process(tmp_path):
    code = "import multiprocessing; print(multiprocessing.get_start_method())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert make(tmp_path, ["plain"])["plain"][1]["results"]["start_method"] == fresh


def test_nothing_leaks_from_run_to_run(tmp_path):
    records = make(tmp_path, ["plain", "one", "two"])
    assert [record["results"]["leaked"] for _, record in records.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("crash", "ended by SIGKILL, as for want of memory"),
        ("raise", "RuntimeError: something broke"),
        ("refuse", "--reg refuse is not acceptable"),
    ],
)
def test_a_broken_run_tells_why_and_breaks_no_other(tmp_path, method, reason):
    records = make(tmp_path, [method, "plain"])
    run, record = records[method]
    assert not record["finished"]
    assert run.reason(record) == reason
    assert records["plain"][1]["finished"]


def test_each_job_has_a_gpu_and_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    methods = ["plain --seconds 0.5", "one --seconds 0.5"]  # both at once
    records = make(tmp_path, methods, jobs=2, devices=["3", "5"])
    found = [record["results"] for _, record in records.values()]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in found} == {"3", "5"}
    assert [one["OMP_NUM_THREADS"] for one in found] == ["4", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,7")
    assert gpus() == ["2", "7"]


def test_one_job_is_left_alone(tmp_path):
    """As `hf-rat glue` itself would run: all GPUs, all cores."""
    found = make(tmp_path, ["plain"], devices=["0", "1"])["plain"][1]["results"]
    assert found["CUDA_VISIBLE_DEVICES"] == os.environ.get("CUDA_VISIBLE_DEVICES")
    assert found["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS")


def test_what_is_imported_once_is_fit_to_be_forked():
    """No thread, no look at a GPU, no state of a run."""
    code = """if True:
        import threading, torch, accelerate
        for name in ("is_available", "device_count", "_lazy_init"):
            setattr(torch.cuda, name, lambda *args: 1 / 0)
        state = torch.get_rng_state()
        import hf_rat.cli.glue, hf_rat.cli.textcls, hf_rat.experiments.preload
        assert threading.active_count() == 1, threading.enumerate()
        assert torch.equal(state, torch.get_rng_state())
        assert not torch.cuda.is_initialized()
        assert not accelerate.PartialState._shared_state
    """
    subprocess.run([sys.executable, "-c", code], check=True)


class Comparison:
    """The comparison of killed_comparison.py, in a process."""

    def __init__(self, tmp_path, jobs=2, seconds=0.05, methods=()):
        self.output, self.calls = tmp_path / "out", tmp_path / "calls"
        environment = {**os.environ, "QUICK_CALLS": str(self.calls), "PYTHONPATH": os.pathsep.join(sys.path)}
        script = [sys.executable, str(SUPPORT / "killed_comparison.py"), str(self.output), str(jobs), str(seconds)]
        self.process = subprocess.Popen(
            [*script, *methods], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finished(self):
        """(method, seed) of the records that say so."""
        records = [json.loads(path.read_text()) for path in self.output.glob("*/seed-*.json")]
        return {(record["method"], str(record["seed"])) for record in records if record["finished"]}

    def told(self):
        """(method, seed, what) of every line that a command in the output folder has left."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [tuple(line.split()) for line in lines]

    def wait(self, condition):
        latest = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < latest
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.01)

    def end(self):
        out, error = self.process.communicate(timeout=120)
        return self.process.returncode, out, error


def test_two_comparisons_at_once_are_refused(tmp_path):
    first = Comparison(tmp_path, seconds=60)
    first.wait(lambda: ("plain", "1", "begun") in first.told())
    code, _, error = Comparison(tmp_path, seconds=60).end()
    assert (code, error) == (2, f"error: --output_dir {first.output}: another hf-rat compare is at work there\n")
    first.process.kill()
    first.end()
    code, _, error = Comparison(tmp_path, seconds=0).end()
    assert code == 2
    assert "was made by another command" in error, "the lock ended with its process, not so the record"


def test_ctrl_c_is_one_line_and_ends_what_runs(tmp_path):
    first = Comparison(tmp_path, jobs=2, seconds=0.4)
    first.wait(lambda: len(first.finished()) >= 3)
    first.process.send_signal(signal.SIGINT)
    code, out, error = first.end()
    finished = first.finished()
    assert code == 130
    assert "FAILED" not in out, "a run that was ended has not failed"
    assert error == (
        f"interrupted: {len(finished)} of 20 runs are finished and kept in {first.output}; to go on, give the same "
        "command again\n"
    )
    told = first.told()
    time.sleep(0.6)
    assert first.told() == told, "a run went on by itself"


def test_a_disk_that_a_run_finds_full_stops_the_comparison(tmp_path):
    code, _, error = Comparison(tmp_path, jobs=1, seconds=0, methods=["plain", "full", "one"]).end()
    assert code == 2
    assert error.count("\n") == 1
    assert "No space left on device" in error
    assert "1 of 15 runs are finished and kept" in error


def test_a_killed_comparison_takes_its_runs_along(tmp_path):
    first = Comparison(tmp_path, jobs=2, seconds=1)
    first.wait(lambda: len([line for line in first.told() if line[2] == "begun"]) >= 4)
    first.process.kill()
    first.end()
    told = first.told()
    time.sleep(1.3)
    assert first.told() == told, "an orphan went on"


@pytest.mark.slow
def test_a_run_of_many_is_the_same_command_in_a_fresh_process(tmp_path):
    """Scores, weights and answers, bit by bit; also after another run, whose settings must not leak."""
    methods = ("rdrop --fast", "rat(epsilon=0.3)")
    base = ("glue", "--max_steps", "4", "--max_train_samples", "160", "--max_eval_samples", "50")
    experiment = Experiment(tuple(map(Method, methods)), (3,), tmp_path / "out", base)
    with Pool(Processes("hf_rat.cli.main", ("hf_rat.cli.glue", "hf_rat.experiments.preload"))) as pool:
        runs = {run: pool.submit(run) for run in experiment.plan()}
    for run, future in runs.items():
        record = future.result()
        assert record["finished"], run.reason(record)
        fresh = tmp_path / "fresh" / run.method.slug
        command = [sys.executable, "-m", "hf_rat.cli.main", *run.command[:-1], str(fresh)]
        subprocess.run(command, check=True, capture_output=True)
        results = json.loads((fresh / "all_results.json").read_text())
        measured = ("runtime", "per_second", "time_factor")
        for name, value in results.items():
            if not any(part in name for part in measured):
                assert record["results"][name] == value, name
        files = ["model.safetensors", "eval_predictions.npz", "eval_predictions_train.npz"]
        for name in files:
            assert (fresh / name).read_bytes() == (run.folder / name).read_bytes(), name


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path):
    draw, at_work = random.Random(0), 0
    for _ in range(20):
        before = Comparison(tmp_path, seconds=0.5)
        finished, seen = before.finished(), len(before.told())
        if draw.random() < 0.75:  # else before its first run, or while one starts
            before.wait(lambda told=before.told, seen=seen: any(line[2] == "begun" for line in told()[seen:]))
        time.sleep(draw.uniform(0, 0.8))
        assert before.process.poll() is None, "it ended before it was killed 20 times"
        before.process.kill()
        before.end()
        told = before.told()[seen:]
        begun = {line[:2] for line in told if line[2] == "begun"}
        at_work += bool(begun - {line[:2] for line in told if line[2] == "ended"})
        assert not begun & finished, "a finished run was repeated"
        assert finished <= before.finished(), "a finished run was lost"
    assert at_work >= 7, "many kills must find runs at work"
    code, _, error = Comparison(tmp_path, seconds=0.5).end()
    assert (code, error) == (0, "")
    assert len(before.finished()) == 20

"""How long runs take: figures by hand, and what they rest on."""

import json
from pathlib import Path

import pytest
import torch

from hf_rat.experiments import estimate
from hf_rat.experiments.display import Display
from hf_rat.experiments.estimate import Durations, Timing, duration, factor
from hf_rat.experiments.experiment import Cell, Experiment
from hf_rat.experiments.method import Method
from hf_rat.experiments.pool import Pool
from hf_rat.trainer.training_args import RegularizedTrainingArguments


@pytest.fixture
def experiment(tmp_path):
    methods = tuple(map(Method, ("plain", "rdrop", "fgm")))
    cells = tuple(Cell(name, None, ("--task_name", name)) for name in ("rte", "cola"))
    return Experiment(methods, (1, 2), tmp_path / "out", ("glue",), cells)


def record(training=80.0, seconds=100.0):
    return {"seconds": seconds, "finished": True, "results": {"train_runtime": training, "eval_runtime": 5.0}}


def test_a_method_costs_what_its_passes_cost():
    assert factor("plain") == 1
    # Two forwards and backwards to one, with the shares of a plain step that cost.py states.
    assert factor("rdrop") == pytest.approx((2 * (0.375 + 0.56) + 0.065) / 1)
    assert factor("rat(epsilon=") == 1, "what cannot be read is told by its run"


def test_finished_runs_tell_of_the_others_in_their_cell(experiment):
    durations = Durations()
    plain, rdrop, fgm = experiment.plan()[:3]
    elsewhere = experiment.plan()[3]
    assert durations.seconds(plain) is None
    durations.learn(plain, record(80, 100))
    assert durations.seconds(plain) == 100
    # 20 seconds that are not training, and 80 seconds of plain training.
    assert durations.seconds(rdrop) == pytest.approx(20 + 80 * factor("rdrop"))
    assert durations.seconds(elsewhere) is None
    durations.learn(rdrop, record(400, 500))
    assert durations.seconds(rdrop) == 500, "its own time, not what its passes say"
    one = 20 + 80 * factor("fgm")
    other = 100 + 400 / factor("rdrop") * factor("fgm")
    assert durations.seconds(fgm) == pytest.approx((one + other) / 2)
    assert durations.basis([fgm]) == "by 2 finished runs"


def test_an_older_record_has_no_time_of_the_whole(experiment):
    durations, old = Durations(), record()
    del old["seconds"]
    durations.learn(experiment.plan()[0], old)
    assert durations.seconds(experiment.plan()[0]) == 85


def test_the_total(experiment):
    durations, runs = Durations(), experiment.plan()
    assert durations.total(runs, 2) is None
    durations.probed[("rte", None)] = Timing(10, 0)
    assert durations.total(runs, 1) == 12 * 10, "what is not known is taken for average"
    assert durations.total(runs, 4) == 30
    assert durations.total(runs[:1], 4) == 10, "no run is shared out"
    assert durations.total([], 4) == 0


def test_a_probe_is_a_short_run_elsewhere(experiment, tmp_path):
    """4 of 10 steps after 0.5 epochs, 3 epochs asked for: 60 steps in the whole."""
    seen = []

    class Runner:
        def __call__(self, command, log):
            seen.append(command)
            folder = Path(command[-1])
            assert tmp_path not in folder.parents, "the output folder is left alone"
            folder.mkdir()
            if "cola" in command:
                log.write_text("error: no such data\n")
                return 2
            args = RegularizedTrainingArguments(
                output_dir=str(folder), num_train_epochs=3, eval_strategy="epoch", use_cpu=True
            )
            torch.save(args, folder / "training_args.bin")
            history = [
                {"step": 10, "loss": 1.0},
                {"step": 10, "eval_runtime": 2.0},
                {"step": 10, "train_runtime": 7.0},
                {"step": 10, "eval_runtime": 2.0},
            ]
            (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
            results = {"train_runtime": 7.0, "epoch": 0.5, "eval_runtime": 2.0}
            (folder / "all_results.json").write_text(json.dumps(results))
            return 0

        def stop(self):
            pass

    durations = Durations()
    with Pool(Runner()) as pool:
        durations.probe(experiment, experiment.plan(), pool)
    assert len(seen) == 2, "one per cell"
    assert all("plain" in command and estimate.value_of(command, "max_steps") == "10" for command in seen)
    timing = durations.probed[("rte", None)]
    # (7 - 2) seconds for 10 steps, 60 steps; beside that the evaluations of three epochs, and nothing else, since the
    # whole took no longer than its training here.
    assert timing.training == pytest.approx(30)
    assert timing.fixed == pytest.approx(3 * 2 - 7, abs=0.9)
    assert durations.basis(experiment.plan()) == (
        "by 1 short run of 10 steps and the passes of each method; the short run failed in cola (no such data)"
    )


def test_durations_in_words():
    assert [duration(s) for s in (0.4, 89, 90, 5300, 5400, 7500)] == [
        "0 s",
        "89 s",
        "2 min",
        "88 min",
        "1 h 30 min",
        "2 h 5 min",
    ]


def test_plain_lines_say_what_runs_and_how_long_is_left(experiment, capsys):
    runs, durations = experiment.plan()[:4], Durations()
    with Display(durations) as display:
        display.expect(runs[1:], kept=1)
        display.begin(runs[1])
        display.end(runs[1], record(seconds=200))
    begun, ended = capsys.readouterr().out.splitlines()
    assert begun.endswith(" rte, rdrop, seed 1: begins")
    assert ended.startswith("[2/4] rte, rdrop, seed 1: finished in 3 min; about ")
    assert ended.endswith(" left")

"""FSDP2 and DDP without Accelerate, over gloo: what two processes get is what one process gets on all examples."""

import json

import launches
import pytest
import runs
import sharded_processes

BOTH = pytest.mark.parametrize("engine", sharded_processes.ENGINES)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    result = tmp_path_factory.mktemp("sharded") / "result.json"
    launches.fork(launches.HERE / "sharded_processes.py", result, processes=2)
    return json.loads(result.read_text(encoding="utf-8"))


@pytest.mark.parametrize("expression", sharded_processes.EVERY)
@pytest.mark.parametrize("case", sharded_processes.CASES)
def test_two_processes_get_the_losses_and_gradients_of_one(seen, case, expression):
    one = seen["compared"][case][expression]
    if case != "DDP" and expression in runs.AVERAGED:
        assert "FSDP2 shards the weights" in one["refused"]
        assert "\n" not in one["refused"]
        return
    if case != "DDP" and expression.partition("(")[0] in runs.AT_WEIGHTS:
        assert "FSDP2 shards them" in one["refused"]
        assert "\n" not in one["refused"]
        return
    assert one["losses"] == pytest.approx(one["expected"], rel=1e-5, abs=1e-6)
    assert one["largest"] > 0.01
    assert one["gradients apart"] < 1e-4


@BOTH
def test_a_bad_pass_on_one_process_is_left_out_on_both(seen, engine):
    assert seen["bad"][engine] == {"kept": [["task"], ["task"]], "finite": True, "counted": 1}


@pytest.mark.parametrize(
    ("what", "words"),
    [("lean", "FSDP2 cannot"), ("FSDP 1", "fsdp_version: 2"), ("average", "average='ema(0.9)' keeps an average")],
)
def test_what_cannot_be_right_on_shards_is_refused(seen, what, words):
    assert words in seen["refused"][what]
    assert "\n" not in seen["refused"][what]


def test_batches_on_shards_stay_whole(seen):
    assert seen["whole"] == "FSDP2 wants the same forwards on every process"


def test_each_process_moves_its_weights_by_the_slope_of_its_own_micro_batch(seen):
    assert seen["each"]["apart"] < 1e-5
    assert seen["each"]["of each"] > 0.1

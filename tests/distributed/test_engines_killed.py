"""A process of two is killed in the middle of a run: the other ends, what is on disk is whole, resuming is exact."""

import json
import signal

import launches
import pytest
import torch
from killed_processes import AT, EVERY, MAIN_DIES, STEPS, WORKER_DIES
from safetensors.torch import load_file

from hf_rat.finetuning.checkpoints import checkpoint_problem, checkpoints, resume_point

pytestmark = pytest.mark.slow

SCRIPT = launches.HERE / "killed_processes.py"
LAUNCH = [*launches.ACCELERATE, "--config_file", "configs/accelerate/ddp_2_processes.yaml", str(SCRIPT)]
SECONDS = 240
"""Until the others have ended, from their start on; gloo itself would wait half an hour for a silent process."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The last checkpoint of the run that was not cut."""
    folder = tmp_path_factory.mktemp("straight")
    launches.fork(SCRIPT, folder, "straight", processes=2)
    return folder / f"checkpoint-{STEPS}"


def assert_goes_on_as_if_nothing_happened(folder, straight):
    """From the newest checkpoint that is whole, to the same weights, averages and logs, bit for bit."""
    whole = next(path for path in checkpoints(folder) if checkpoint_problem(path) is None)
    launches.fork(SCRIPT, folder, whole, processes=2)
    resumed = folder / straight.name
    for name in ("model.safetensors", "teacher.safetensors"):
        theirs, ours = load_file(straight / name), load_file(resumed / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert logs(resumed) == logs(straight)


def logs(checkpoint):
    """What was logged at each step, but for speeds."""
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    kept = [
        {name: value for name, value in log.items() if "second" not in name and "runtime" not in name}
        for log in history
    ]
    assert len(kept) == STEPS
    return kept


def test_the_run_is_worth_killing(straight):
    last = logs(straight)[-1]
    assert all(value > 0.005 for name, value in last.items() if name.startswith("loss_"))
    weights, averages = (load_file(straight / name) for name in ("model.safetensors", "teacher.safetensors"))
    assert any(not torch.equal(averages[name], value) for name, value in weights.items())


def test_a_worker_is_killed_in_a_pass(straight, tmp_path):
    # Without a launcher, which would end one for the other.
    (ours, killed), printed = launches.fork_and_wait(SCRIPT, tmp_path, WORKER_DIES, processes=2, seconds=SECONDS)
    assert killed == -signal.SIGKILL
    assert ours == 1, printed[0][-3000:]
    assert "Error" in printed[0]
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (AT, AT - EVERY)]
    assert all(checkpoint_problem(path) is None for path in checkpoints(tmp_path))
    assert resume_point(tmp_path, True) == tmp_path / f"checkpoint-{AT}"
    assert_goes_on_as_if_nothing_happened(tmp_path, straight)


def test_the_main_process_is_killed_in_a_save(straight, tmp_path):
    process = launches.start([*LAUNCH, str(tmp_path), MAIN_DIES])
    printed = launches.finish(process, SECONDS)
    assert process.returncode == 1
    assert "SIGKILL" in printed, printed[-3000:]
    newest, before = checkpoints(tmp_path)
    assert "trainer_state.json is missing" in checkpoint_problem(newest)
    assert checkpoint_problem(before) is None
    with pytest.raises(ValueError, match=f"the newest whole one is --resume_from_checkpoint {before}"):
        resume_point(tmp_path, True)
    assert_goes_on_as_if_nothing_happened(tmp_path, straight)

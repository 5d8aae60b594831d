"""Checkpoints that were cut short are named, and the newest whole one is offered."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_rat.finetuning.checkpoints import checkpoint_problem, checkpoints, fresh_folder, resume_point


def _checkpoint(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"a": torch.arange(1000.0), "b": torch.zeros(3, dtype=torch.bfloat16)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(1000.0)}, path / name)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (path / "training_args.bin").write_bytes(b"never read")
    return path


@pytest.fixture
def run(tmp_path):
    for step in (10, 9, 100):
        _checkpoint(tmp_path / "run", step)
    return tmp_path / "run"


def _damage_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def _lengthen(path):
    path.write_bytes(path.read_bytes() + bytes(8))


def _damage_header(path):
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF
    path.write_bytes(content)


def test_whole_checkpoints_have_no_problem_and_are_in_order(run):
    assert [path.name for path in checkpoints(run)] == ["checkpoint-100", "checkpoint-10", "checkpoint-9"]
    assert [checkpoint_problem(path) for path in checkpoints(run)] == [None] * 3
    assert resume_point(run, "true") == run / "checkpoint-100"
    assert resume_point(run, True) == run / "checkpoint-100"
    assert resume_point(run, str(run / "checkpoint-9")) == run / "checkpoint-9"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: _cut(c / "model.safetensors", -1), "model.safetensors is cut short"),
        (lambda c: _lengthen(c / "model.safetensors"), "model.safetensors is cut short or damaged"),
        (lambda c: _damage_header(c / "model.safetensors"), "model.safetensors is cut short or damaged"),
        (lambda c: _cut(c / "model.safetensors", 50), "model.safetensors is cut short"),
        (lambda c: _cut(c / "model.safetensors", 0), "model.safetensors is cut short"),
        (lambda c: (c / "model.safetensors").unlink(), "there is no model.safetensors"),
        (lambda c: _cut(c / "optimizer.pt", -100), "optimizer.pt is cut short or damaged"),
        (lambda c: _cut(c / "scheduler.pt", 0), "scheduler.pt is cut short or damaged"),
        (lambda c: _damage_middle(c / "rng_state.pth"), "rng_state.pth is damaged"),
        (lambda c: _cut(c / "trainer_state.json", -1), "trainer_state.json is not complete JSON"),
        (lambda c: (c / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (
            lambda c: (c / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}'),
            "names model-2.safetensors, which is missing",
        ),
    ],
)
def test_each_damage_is_named_and_the_newest_whole_one_offered(run, damage, words):
    damage(run / "checkpoint-100")
    for asked in ("true", str(run / "checkpoint-100")):
        with pytest.raises(ValueError, match="--resume_from_checkpoint") as error:
            resume_point(run, asked)
        assert words in str(error.value)
        assert str(error.value).endswith(f"the newest whole one is --resume_from_checkpoint {run / 'checkpoint-10'}")
        assert "\n" not in str(error.value)
    assert resume_point(run, str(run / "checkpoint-10")) == run / "checkpoint-10"


def test_nothing_whole_is_said(run):
    for path in checkpoints(run):
        (path / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="no other checkpoint beside it is whole"):
        resume_point(run, "true")


def test_an_adapter_is_weights_enough(run):
    (run / "checkpoint-100" / "model.safetensors").rename(run / "checkpoint-100" / "adapter_model.safetensors")
    assert checkpoint_problem(run / "checkpoint-100") is None


def test_a_folder_that_is_not_empty_needs_to_be_resumed(tmp_path):
    assert resume_point(tmp_path / "new", None) is None
    assert resume_point(tmp_path, None) is None
    (tmp_path / "x").write_text("x")
    with pytest.raises(ValueError, match=r"--output_dir '.*' is not empty.*--resume_from_checkpoint"):
        resume_point(tmp_path, None)
    with pytest.raises(ValueError, match="there is no checkpoint in --output_dir"):
        resume_point(tmp_path, "true")
    with pytest.raises(ValueError, match="there is no such folder"):
        resume_point(tmp_path, str(tmp_path / "checkpoint-3"))


def test_fresh_folders_are_numbered(tmp_path):
    names = [fresh_folder(tmp_path / "runs", "glue").name for _ in range(3)]
    assert names == ["glue-001", "glue-002", "glue-003"]

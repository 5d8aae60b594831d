"""A run that is cut and resumed is, bit for bit, the run that was not."""

import json
from pathlib import Path

import keyed
import pytest
import runs
import tiny
import torch
from safetensors.torch import load_file
from transformers import TrainerState
from two_processes import BadPass

from hf_rat import RegularizedTrainer, parse

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "linear", "max_grad_norm": 1.0}
CASES = {
    "plain": 3,
    "rat(epsilon=0.5)": 3,
    "rat(epsilon=0.5, unit='embedding')": 4,
    "rat(epsilon=0.5, begin=2, warmup=3)": 4,
    "freelb(begin=4)": 3,
    "rdrop(warmup=5)": 3,
    "rat(epsilon=0.9, unit='relative', target=0.1, begin=0.17, end=0.84, every=2)": 4,
    "fgm(epsilon=0.9, unit='relative', target=0.1)": 3,
    "smart(epsilon=0.05, step=0.05, start=0.02, beta=0.5)": 4,
    "rat(epsilon=0.5, examples=0.5) + 0.5 * rdrop(examples=0.25)": 4,
    "vat(epsilon=0.5) + 0.5 * adversarial_dropout(rate=0.2)": 3,
}
"""Expression -> the step after which it is cut: the end of the first epoch, or inside the second."""


def trainer(expression, folder, **settings):
    saving = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(folder), "max_steps": 6}
    settings = {"count": 20, "gradient_accumulation_steps": 2, **ADAM, **saving, **settings}
    torch.manual_seed(1)
    return runs.trainer(expression, **settings)


@pytest.mark.parametrize(("expression", "every"), CASES.items())
def test_resuming_continues_exactly(expression, every, tmp_path):
    """6 steps in two epochs of 3, the last of each a short window."""
    straight = trainer(expression, tmp_path / "straight", save_steps=every)
    straight.train()
    checkpoint = tmp_path / "straight" / f"checkpoint-{every}"
    resumed = trainer(expression, tmp_path / "resumed", save_steps=every)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    runs.assert_same_weights(runs.ran(resumed).weights, runs.ran(straight).weights)
    assert runs.ran(resumed).logs == runs.ran(straight).logs
    assert len(runs.ran(resumed).logs) == 6


def test_the_last_checkpoint_is_found(tmp_path):
    expression = "smart(epsilon=0.05, step=0.05, start=0.02, beta=0.5)"
    straight = trainer(expression, tmp_path)
    straight.train()
    (tmp_path / "checkpoint-6").rename(tmp_path / "finished")
    resumed = trainer(expression, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    runs.assert_same_weights(runs.ran(resumed).weights, runs.ran(straight).weights)


@pytest.mark.parametrize("expression", CASES)
def test_a_checkpoint_names_its_regularizer(expression, tmp_path):
    one = trainer(expression, tmp_path)
    one.train()
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"]["hf_rat"]["attributes"]
    assert parse(kept["regularizer"]) == one.regularizer
    assert kept["nonfinite_steps"] == 0


def test_weights_are_safetensors(tmp_path):
    """The Trainer's optimizer, scheduler, RNG state and arguments are its own affair."""
    trainer("smart", tmp_path, max_steps=3).train()
    files = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    theirs = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}
    assert {"model.safetensors", "teacher.safetensors"} <= files
    assert not [name for name in files - theirs if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
    trainer("rat", tmp_path / "rat", max_steps=3).train()
    assert "teacher.safetensors" not in {path.name for path in (tmp_path / "rat" / "checkpoint-3").iterdir()}


def test_the_average_is_written_before_what_makes_a_checkpoint_whole(tmp_path, monkeypatch):
    there = []
    write = TrainerState.save_to_json

    def look_and_write(state, path):
        there.append((Path(path).parent / "teacher.safetensors").is_file())
        write(state, path)

    monkeypatch.setattr(TrainerState, "save_to_json", look_and_write)
    trainer("smart", tmp_path, max_steps=3).train()
    assert there
    assert all(there)


def test_the_average_is_that_of_the_weights_after_each_step(tmp_path):
    one = trainer("smart(beta=0.75)", tmp_path, save_steps=1, max_steps=3)
    average = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.train()
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint-{step}"
        weights, teacher = load_file(folder / "model.safetensors"), load_file(folder / "teacher.safetensors")
        average = {name: 0.75 * average[name] + 0.25 * value for name, value in weights.items()}
        for name, value in average.items():
            torch.testing.assert_close(teacher[name], value, rtol=1e-5, atol=1e-6)


def test_a_missing_average_is_named(tmp_path):
    trainer("smart", tmp_path, max_steps=3).train()
    (tmp_path / "checkpoint-3" / "teacher.safetensors").unlink()
    with pytest.raises(ValueError, match=r"teacher\.safetensors is missing") as error:
        trainer("smart", tmp_path).train(resume_from_checkpoint=True)
    assert "\n" not in str(error.value)


def test_the_count_of_nonfinite_steps_is_resumed(tmp_path):
    with keyed.noise():
        first = trainer("rat", tmp_path, kind=keyed.KeyedTrainer, max_steps=3)
        BadPass(first.model, 2)
        first.train()
        second = trainer("rat", tmp_path, kind=keyed.KeyedTrainer)
        second.train(resume_from_checkpoint=True)
    assert runs.ran(second).logs[-1]["nonfinite_steps"] == 1


def test_epsilon_keeps_the_unit_of_the_beginning(tmp_path):
    """unit="embedding" is the norm of the table before the first step, not of the table that a checkpoint holds."""
    model = tiny.tiny_model(dropout=0.1)
    before = model.get_input_embeddings().weight.detach().norm(dim=-1).mean().item()
    trainer("fgm(unit='embedding')", tmp_path, model=model, learning_rate=0.5, optim="sgd").train()
    for step in (3, 6):
        folder = Path(tmp_path) / f"checkpoint-{step}"
        state = json.loads((folder / "trainer_state.json").read_text())
        kept = state["stateful_callbacks"]["hf_rat"]["attributes"]["embedding_norms"]["embeddings"]
        table = load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
        assert kept == pytest.approx(before, rel=1e-6)
        assert table.norm(dim=-1).mean().item() != pytest.approx(before, rel=1e-6)


def test_a_resumed_trainer_does_not_resume_again(tmp_path):
    """train() without a checkpoint begins anew, whatever was resumed before it."""
    trainer("smart", tmp_path, max_steps=3).train()
    one = trainer("smart", tmp_path / "other", kind=RegularizedTrainer, max_steps=3)
    one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert one.state.global_step == 3
    one.train()
    assert one.state.global_step == 3
    assert len(runs.ran(one).logs) == 3

"""The recorder of a training: it measures at each evaluation, and the training does not feel it."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import tiny_model
from transformers import Trainer, TrainingArguments

from hf_rat.analysis.callbacks import FILE, GapRecorder
from hf_rat.analysis.dropout_gap import dropout_gap
from hf_rat.analysis.input_gradient import input_gradient_norms
from hf_rat.regularizers.recipes import rat
from hf_rat.trainer.trainer import RegularizedTrainer


def rows(count, seed, labels=3):
    generator = np.random.default_rng(seed)
    return [
        {
            "input_ids": generator.integers(3, 60, 7).tolist(),
            "attention_mask": [1] * 7,
            "labels": float(generator.normal()) if labels == 1 else int(generator.integers(labels)),
        }
        for _ in range(count)
    ]


def trained(folder, recorder=None, kind=RegularizedTrainer, labels=3, dropout=0.2, resume=None, **settings):
    """A trainer after six steps, evaluated after each second one."""
    given = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    args = TrainingArguments(
        str(folder),
        **{**given, **settings},
        per_device_train_batch_size=4,
        per_device_eval_batch_size=5,
        learning_rate=1e-2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    torch.manual_seed(0)
    more = {} if kind is Trainer else {"regularizer": rat(epsilon=0.3)}
    model = tiny_model("bert", dropout=dropout, labels=labels)
    trainer = kind(model, args, train_dataset=rows(20, 0, labels), eval_dataset=rows(13, 1, labels), **more)
    if recorder is not None:
        trainer.add_callback(recorder(trainer))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def recorded(trainer):
    return [log for log in trainer.state.log_history if "gap_input_gradient_norm" in log]


@pytest.mark.parametrize("kind", [RegularizedTrainer, Trainer])
def test_the_training_is_the_same_to_the_last_bit(tmp_path, kind):
    plain = trained(tmp_path / "without", kind=kind)
    watched = trained(tmp_path / "with", lambda trainer: GapRecorder(trainer, sample=8, masks=4), kind=kind)
    other = watched.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in plain.model.state_dict().items())
    own = [{name: x for name, x in log.items() if "runtime" not in name and "per_second" not in name}
           for log in watched.state.log_history if log not in recorded(watched)]  # fmt: skip
    assert [log["eval_loss"] for log in own if "eval_loss" in log] == [
        log["eval_loss"] for log in plain.state.log_history if "eval_loss" in log
    ]
    found = recorded(watched)
    assert [log["step"] for log in found] == [0, 2, 4, 6]
    kept = json.loads((tmp_path / "with" / FILE).read_text(encoding="utf-8"))
    assert [one["step"] for one in kept] == [0, 2, 4, 6]
    for log, one in zip(found, kept, strict=True):
        assert {name: value for name, value in log.items() if name != "epoch"} == {
            name: value for name, value in one.items() if name != "epoch"
        }
        assert all(math.isfinite(value) for value in one.values())
    assert len({one["gap_input_gradient_norm"] for one in kept}) == 4


def test_what_is_recorded_last_is_measured_at_the_trained_model(tmp_path):
    trainer = trained(tmp_path, lambda trainer: GapRecorder(trainer, sample=100, masks=4, seed=7))
    last = recorded(trainer)[-1]
    everything = rows(13, 1)
    parts = [everything[:5], everything[5:10], everything[10:]]
    batches = [{name: torch.tensor([row[name] for row in part]) for name in part[0]} for part in parts]
    model = trainer.model
    assert last["gap_input_gradient_norm"] == pytest.approx(float(input_gradient_norms(model, batches).mean()))
    gap = dropout_gap(model, batches, 4, seed=7)
    assert last["gap_variance"] == pytest.approx(gap.variance)
    assert last["gap_whole_nll"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)
    assert last["gap_averaged_accuracy"] == pytest.approx(gap.averaged["accuracy"])
    assert len(recorded(trainer)) == 4, "an evaluation after the training is not recorded"


def test_a_resumed_run_goes_on_with_its_record(tmp_path):
    def recorder(trainer):
        return GapRecorder(trainer, sample=6, masks=4)

    constant = {"lr_scheduler_type": "constant"}  # the interrupted run has fewer steps
    whole = trained(tmp_path / "whole", recorder, **constant)
    trained(tmp_path / "part", recorder, max_steps=4, **constant)
    trained(tmp_path / "part", recorder, **constant, resume=str(tmp_path / "part" / "checkpoint-2"))
    one, other = (json.loads((tmp_path / name / FILE).read_text()) for name in ("whole", "part"))
    assert [record["step"] for record in other] == [0, 2, 4, 6]
    assert [record["gap_fd"] for record in other] == pytest.approx([record["gap_fd"] for record in one])
    assert recorded(whole)


def test_a_regression_and_a_model_without_dropout(tmp_path):
    trainer = trained(tmp_path / "a", lambda trainer: GapRecorder(trainer, sample=6, masks=4), labels=1)
    assert "gap_averaged_mse" in recorded(trainer)[0]
    assert "gap_agreement" not in recorded(trainer)[0]
    trainer = trained(tmp_path / "b", lambda trainer: GapRecorder(trainer, masks=0), dropout=0.0)
    assert "gap_variance" not in recorded(trainer)[0]
    with pytest.raises(ValueError, match="GapRecorder: BertForSequenceClassification has no dropout"):
        trained(tmp_path / "c", GapRecorder, dropout=0.0)


def test_what_would_record_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give an eval_strategy"):
        trained(tmp_path, GapRecorder, eval_strategy="no")

"""Rates that fall from layer to layer and a head that is trained first, in whole runs."""

import pytest
import runs
import tiny
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import TrainerCallback

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "weight_decay": 0.1, "lr_scheduler_type": "linear"}


class Recorder(TrainerCallback):
    def __init__(self):
        self.path, self.rates = [], []

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.path.append({name: value.detach().clone() for name, value in model.named_parameters()})
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    on_train_end = on_step_begin


def trained(reg="plain", model=None, resume=None, **settings):
    torch.manual_seed(0)
    recorder = Recorder()
    one = runs.trainer(reg, model=model, options={"callbacks": [recorder]}, **{**ADAM, **settings})
    one.train(resume_from_checkpoint=resume)
    return one, recorder


def moved(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("reg", ["plain", "rat(epsilon=0.5)"])
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_the_head_is_trained_alone_for_so_many_steps(reg, clip):
    """Weight decay does not touch the rest either, and what clips the gradient is the head's."""
    one, recorder = trained(reg, probe_steps=2, max_grad_norm=clip, gradient_accumulation_steps=2, max_steps=3)
    head = {"classifier.weight", "classifier.bias"}
    assert moved(recorder.path[0], recorder.path[2]) == head
    assert moved(recorder.path[2], recorder.path[3]) > head
    whole, _ = trained(reg, max_grad_norm=clip, gradient_accumulation_steps=2, max_steps=1)
    norms = [run.state.log_history[0]["grad_norm"] for run in (one, whole)]
    assert norms[0] < norms[1], "the norm is that of the head"


def test_probing_is_training_with_a_frozen_body():
    """But for the gradients that are taken away: the same head after three steps."""
    model = tiny.tiny_model(dropout=0.1)
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    frozen, _ = trained(model=model, max_steps=3, max_grad_norm=0.5)
    probed, _ = trained(model=tiny.tiny_model(dropout=0.1), probe_steps=3, max_steps=3, max_grad_norm=0.5)
    for name, value in frozen.model.named_parameters():
        torch.testing.assert_close(dict(probed.model.named_parameters())[name], value, rtol=1e-5, atol=1e-7)


def test_with_adapters_the_head_is_what_is_trained_above_them():
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"], init_lora_weights=False)
    _, recorder = trained(model=get_peft_model(tiny.tiny_model(), config), probe_steps=1, max_steps=2)
    first, second = (moved(recorder.path[at], recorder.path[at + 1]) for at in (0, 1))
    assert first
    assert all("classifier" in name for name in first)
    assert any("lora" in name for name in second)


def test_rates_fall_from_layer_to_layer_and_follow_the_schedule():
    """Adam's first step moves each entry by its rate, whatever the gradient is."""
    settings = {"weight_decay": 0.0, "max_steps": 2, "adam_epsilon": 1e-20}
    one, recorder = trained(layer_decay=0.5, model=tiny.tiny_model(), **settings)
    depth = {"classifier.weight": 0, "bert.encoder.layer.1.output.dense.weight": 1}
    depth |= {"bert.encoder.layer.0.output.dense.weight": 2, "bert.embeddings.LayerNorm.weight": 3}
    for name, below in depth.items():
        step = (recorder.path[1][name] - recorder.path[0][name]).abs().max()
        assert float(step) == pytest.approx(1e-2 * 0.5**below, rel=1e-3)
    assert sorted(set(recorder.rates[0]), reverse=True) == pytest.approx([1e-2, 5e-3, 2.5e-3, 1.25e-3])
    assert recorder.rates[1] == pytest.approx([rate / 2 for rate in recorder.rates[0]])
    assert one.state.log_history[0]["learning_rate"] == pytest.approx(1e-2)


def test_a_factor_of_one_changes_nothing():
    ones, _ = trained(layer_decay=1.0)
    plain, _ = trained()
    runs.assert_same_weights(runs.ran(ones).weights, runs.ran(plain).weights)


def test_resuming_continues_exactly(tmp_path):
    settings = {"layer_decay": 0.8, "probe_steps": 3, "max_steps": 5, "save_strategy": "steps", "save_steps": 1}
    straight, _ = trained(output_dir=str(tmp_path / "a"), **settings)
    for step in (2, 4):
        checkpoint = str(tmp_path / "a" / f"checkpoint-{step}")
        resumed, _ = trained(output_dir=str(tmp_path / "b"), resume=checkpoint, **settings)
        runs.assert_same_weights(runs.ran(resumed).weights, runs.ran(straight).weights)


def test_the_log_tells(caplog):
    with caplog.at_level("INFO", logger="hf_rat"):
        trained(layer_decay=0.9, probe_steps=2, max_steps=1)
    assert "learning rate of each lower layer x 0.9; steps that train the head alone: 2" in caplog.text


def test_an_optimizer_of_one_s_own_keeps_its_rates():
    model = tiny.tiny_model()
    options = {"optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None)}
    one = runs.trainer(model=model, options=options, layer_decay=0.9)
    with pytest.raises(ValueError, match=r"layer_decay=0\.9: the optimizer was given, and keeps its learning rates"):
        one.train()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layer_decay": 0.0}, "layer_decay=0.0 must be a factor above 0 and at most 1"),
        ({"layer_decay": 1.5}, "layer_decay=1.5 must be"),
        ({"layer_decay": float("nan")}, "layer_decay=nan must be"),
        ({"probe_steps": -1}, "probe_steps=-1 must be a number of steps, at least 0"),
    ],
)
def test_bad_values_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        runs.arguments(**settings)


@pytest.mark.parametrize("settings", [{"layer_decay": 0.9}, {"probe_steps": 2}])
def test_a_model_without_layers_or_head_is_refused_before_the_first_step(settings):
    one = runs.trainer(model=tiny.tiny_model("textcnn"), **settings)
    with pytest.raises(ValueError, match="of TextCNNForSequenceClassification cannot be found"):
        one.train()
    assert one.state.global_step == 0

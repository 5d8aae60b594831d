"""Clipping that leaves out the embeddings, and a learning rate that decays step by step, in whole runs."""

import copy

import pytest
import runs
import tiny
import torch
from accelerate.utils import AutocastKwargs
from torch import nn
from transformers import TrainerCallback

CLIP = {"max_grad_norm": 0.05, "clip_embeddings": False}


class Recorder(TrainerCallback):
    """Gradients and learning rates as the optimizer gets them, and the weights before each step."""

    def __init__(self):
        self.gradients, self.rates, self.weights = [], [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.weights.append(copy.deepcopy(model.state_dict()))


class Bag(nn.Module):
    """A user's own model: two tables, one of them tied to a layer that no list of names knows."""

    def __init__(self):
        super().__init__()
        self.words, self.bag = nn.Embedding(tiny.VOCABULARY, 6), nn.EmbeddingBag(tiny.VOCABULARY, 6)
        self.out, self.back = nn.Linear(6, 3), nn.Linear(6, tiny.VOCABULARY, bias=False)
        self.back.weight = self.words.weight

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.words(input_ids).mean(1) + self.bag(input_ids)
        logits = self.out(x) + self.back(x)[:, :3]
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trained(reg="plain", model=None, resume=None, **settings):
    torch.manual_seed(0)
    recorder = Recorder()
    one = runs.trainer(reg, model=model, options={"callbacks": [recorder]}, **settings)
    one.train(resume_from_checkpoint=resume)
    return one, recorder


def clipped_by_hand(gradients, tables, bound):
    """Those of tables as they are, the others times min(1, bound / their norm); and that norm."""
    norm = sum(g.double().square().sum() for name, g in gradients.items() if name not in tables).sqrt()
    factor = min(1.0, bound / float(norm))
    return {name: g if name in tables else g * factor for name, g in gradients.items()}, float(norm)


BERT = {f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
@pytest.mark.parametrize(
    ("reg", "make", "tables"),
    [
        ("plain", tiny.tiny_model, BERT),
        ("fgm(epsilon=0.5) + sam(epsilon=0.1)", tiny.tiny_model, BERT),
        ("plain", Bag, {"words.weight", "bag.weight"}),
    ],
)
def test_what_is_clipped_is_all_but_the_tables(reg, make, tables, accumulation, precision):
    each = {"gradient_accumulation_steps": accumulation, "max_steps": 1, **precision}
    torch.manual_seed(1)
    model = make()
    _, whole = trained(reg, copy.deepcopy(model), **each)
    one, clipped = trained(reg, copy.deepcopy(model), **CLIP, **each)
    expected, norm = clipped_by_hand(whole.gradients[0], tables, CLIP["max_grad_norm"])
    assert norm > CLIP["max_grad_norm"], "this test needs gradients that are clipped"
    assert set(clipped.gradients[0]) == set(expected) >= tables
    for name, gradient in clipped.gradients[0].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
    assert one.state.log_history[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_small_gradient_is_left_as_it_is():
    _, whole = trained(model=tiny.tiny_model(), max_steps=1)
    _, clipped = trained(model=tiny.tiny_model(), max_steps=1, clip_embeddings=False, max_grad_norm=1e6)
    for name, gradient in clipped.gradients[0].items():
        torch.testing.assert_close(gradient, whole.gradients[0][name])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_are_unscaled_once_before_they_are_clipped(accumulation, monkeypatch):
    """The loss scale of fp16, on arithmetic in fp32: the scaler of the CPU, as Accelerate makes one on a GPU."""
    settings = {"max_steps": 1, "gradient_accumulation_steps": accumulation}
    _, whole = trained(model=tiny.tiny_model(), **settings)
    expected, _ = clipped_by_hand(whole.gradients[0], BERT, CLIP["max_grad_norm"])
    torch.manual_seed(0)
    recorder = Recorder()
    one = runs.trainer(model=tiny.tiny_model(), options={"callbacks": [recorder]}, **CLIP, **settings)
    scaler, scales, unscaled = torch.amp.GradScaler("cpu", init_scale=2.0**10), [], []
    monkeypatch.setattr(one.accelerator, "scaler", scaler)
    monkeypatch.setattr(one.accelerator, "native_amp", True)
    monkeypatch.setattr(one.accelerator, "autocast_handler", AutocastKwargs(enabled=False))
    monkeypatch.setattr(one.accelerator.state, "_mixed_precision", "fp16")
    scale, unscale = scaler.scale, scaler.unscale_
    monkeypatch.setattr(scaler, "scale", lambda loss: scales.append(1) or scale(loss))
    monkeypatch.setattr(scaler, "unscale_", lambda optimizer: unscaled.append(1) or unscale(optimizer))
    one.train()
    assert (len(scales), len(unscaled)) == (accumulation, 1)
    for name, gradient in recorder.gradients[0].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


class Exploding(Recorder):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        weight = model.get_input_embeddings().weight
        if state.global_step == 1:
            self.handle = weight.register_hook(lambda g: g * float("nan"))
        elif state.global_step == 2:
            self.handle.remove()


def test_a_step_is_dropped_whose_gradient_of_the_tables_alone_is_not_finite():
    recorder = Exploding()
    runs.trainer(model=tiny.tiny_model(), options={"callbacks": [recorder]}, max_steps=3, **CLIP).train()
    before, after = recorder.weights[1:3]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(recorder.weights[0][name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("settings", "make", "said"),
    [
        ({"clip_embeddings": False, "max_grad_norm": 0.0}, tiny.tiny_model, r"max_grad_norm=0\.0 clips nothing"),
        (CLIP, lambda: frozen(tiny.tiny_model()), "BertForSequenceClassification trains no nn.Embedding"),
    ],
)
def test_nothing_to_leave_out_is_refused(settings, make, said):
    one = runs.trainer(model=make(), **settings)
    with pytest.raises(ValueError, match=f"clip_embeddings=False: {said}"):
        one.train()
    assert one.state.global_step == 0


@pytest.mark.parametrize("engine", ["deepspeed", "fsdp"])
def test_engines_that_clip_whole_models_are_refused(engine):
    one = runs.trainer(model=tiny.tiny_model(), **CLIP)
    setattr(one, f"is_{engine}_enabled", True)
    with pytest.raises(ValueError, match=r"clip_embeddings=False: \w+ clips the gradients of whole models"):
        one.train()


def frozen(model):
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad_(False)
    return model


# --- the learning rate -----------------------------------------------------------------------------------------------

RATE = {"learning_rate": 0.2, "lr_decay": 0.9, "lr_scheduler_type": "constant"}


@pytest.mark.parametrize("reg", ["plain", "rat(epsilon=0.5)"])
@pytest.mark.parametrize("layers", [{}, {"layer_decay": 0.5}])
def test_the_rate_of_each_step_is_that_of_the_one_before_times_the_factor(reg, layers):
    one, recorder = trained(reg, max_steps=4, gradient_accumulation_steps=2, **RATE, **layers)
    for step, rates in enumerate(recorder.rates):
        highest = 0.2 * 0.9**step
        ladder = [highest * 0.5**depth for depth in range(4)] if layers else [highest]
        assert sorted(set(rates), reverse=True) == pytest.approx(ladder)
    assert [log["learning_rate"] for log in one.state.log_history[:4]] == pytest.approx(
        [0.2 * 0.9**step for step in range(4)]
    )
    for step in range(3):
        before, after = recorder.weights[step : step + 2]
        if not layers:
            moved = before["classifier.weight"] - 0.2 * 0.9**step * recorder.gradients[step]["classifier.weight"]
            torch.testing.assert_close(after["classifier.weight"], moved)


def test_resuming_goes_on_where_the_rate_was(tmp_path):
    settings = {**RATE, **CLIP, "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "average": "ema(0.5)"}
    straight, _ = trained(output_dir=str(tmp_path / "a"), **settings)
    checkpoint = str(tmp_path / "a" / "checkpoint-2")
    resumed, recorder = trained(output_dir=str(tmp_path / "b"), resume=checkpoint, **settings)
    assert recorder.rates[0][0] == pytest.approx(0.2 * 0.9**2)
    runs.assert_same_weights(runs.ran(resumed).weights, runs.ran(straight).weights)


@pytest.mark.parametrize("kind", [torch.optim.lr_scheduler.StepLR, torch.optim.lr_scheduler.ExponentialLR])
def test_a_schedule_that_was_given_is_not_replaced(kind):
    model = tiny.tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = (optimizer, kind(optimizer, 1))
    one = runs.trainer(model=model, options={"optimizers": given}, lr_decay=0.9)
    with pytest.raises(ValueError, match=rf"lr_decay=0\.9: a {kind.__name__} was given; keep one of them"):
        one.train()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr_decay": 0.0}, "lr_decay=0.0 must be a factor above 0 and at most 1"),
        ({"lr_decay": float("nan")}, "lr_decay=nan must be"),
        (
            {"lr_decay": 0.9, "lr_scheduler_type": "linear"},
            "lr_decay=0.9 needs lr_scheduler_type='constant', .*'linear'",
        ),
    ],
)
def test_bad_rates_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        runs.arguments(**settings)

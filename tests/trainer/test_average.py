"""The average that a trainer evaluates and saves, against one made by hand of the weights after each step."""

import itertools
import json
import random

import keyed
import pytest
import runs
import tiny
import torch
from accelerate import Accelerator
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput
from two_processes import BadPass

from hf_rat import RegularizationMixin, RegularizedTrainer, mean_teacher
from hf_rat.trainer.average import Average, read_average

STEPS = 6
ADAM = {"optim": "adamw_torch", "learning_rate": 2e-2, "lr_scheduler_type": "linear", "max_steps": STEPS}


class Recorder(TrainerCallback):
    """The weights that each step begins and ends with, as float64."""

    def __init__(self, model):
        self.model, self.path, self.read = model, [], []

    def weights(self):
        return {name: value.detach().double().clone() for name, value in self.model.state_dict().items()}

    def on_train_begin(self, *args, **kwargs):
        self.path = [self.weights()]

    def on_step_end(self, *args, **kwargs):
        self.path.append(self.weights())


def by_hand(path, kind, number, steps=STEPS):
    """The average after the last step of `path`; those weights where nothing is averaged yet."""
    if kind == "ema":
        found = path[0]
        for point in path[1:]:
            found = {name: number * found[name] + (1 - number) * value for name, value in point.items()}
        return found
    points = path[int(number * steps) + 1 :]
    return {name: sum(point[name] for point in points) / len(points) for name in path[0]} if points else path[-1]


def assert_close(found, expected, tolerance=1e-6):
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=tolerance, atol=tolerance, msg=name)


def built(folder, average, reg="plain", model=None, kind=RegularizedTrainer, options=None, **settings):
    """A trainer that evaluates and saves after each step, and what records its weights."""
    torch.manual_seed(3)
    model = tiny.tiny_model(dropout=0.1, _attn_implementation="eager") if model is None else model
    recorder = Recorder(model)
    options = {"eval_dataset": runs.examples(9, seed=5), "callbacks": [recorder], **(options or {})}
    each = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    settings = {**ADAM, **each, "output_dir": str(folder), "average": average, **settings}
    return runs.trainer(reg, kind, model=model, options=options, **settings), recorder


def eval_losses(one):
    return [log["eval_loss"] for log in one.state.log_history if "eval_loss" in log]


def loss_of(model, weights, rows):
    """The task loss of these weights, in evaluation."""
    copy = type(model)(model.config).eval()
    copy.load_state_dict({name: value.float() for name, value in weights.items()})
    with torch.no_grad():
        return float(copy(**runs.collate(rows)).loss)


@pytest.mark.parametrize(
    ("kind", "number", "reg"),
    [("ema", 0.7, "plain"), ("swa", 0.5, "rat(epsilon=0.5)"), ("swa", 0.1, "plain"), ("swa", 0.0, "plain")],
)
def test_the_average_is_what_is_evaluated_saved_and_left(kind, number, reg, tmp_path):
    one, recorder = built(tmp_path, f"{kind}({number})", reg, gradient_accumulation_steps=2)
    one.train()
    losses = eval_losses(one)
    assert len(losses) == STEPS
    for step in range(1, STEPS + 1):
        path = recorder.path[: step + 1]
        expected = by_hand(path, kind, number)
        folder = tmp_path / f"checkpoint-{step}"
        assert_close(load_file(folder / "model.safetensors"), expected)
        assert_close(load_file(folder / "raw_model.safetensors"), path[-1], 0)
        assert losses[step - 1] == pytest.approx(loss_of(one.model, expected, one.eval_dataset), rel=1e-4)
    expected = by_hand(recorder.path, kind, number)
    assert not torch.equal(expected["classifier.weight"], recorder.path[-1]["classifier.weight"])
    assert_close(one.model.state_dict(), expected)
    assert one.evaluate()["eval_loss"] == pytest.approx(losses[-1], rel=1e-6)
    one.save_model(str(tmp_path / "mine"))
    assert_close(load_file(tmp_path / "mine" / "model.safetensors"), expected)
    assert not (tmp_path / "mine" / "raw_model.safetensors").exists()
    predicted = torch.tensor(one.predict(one.eval_dataset).predictions)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mine").eval()
    with torch.no_grad():
        torch.testing.assert_close(predicted, saved(**runs.collate(one.eval_dataset)).logits, rtol=1e-4, atol=1e-5)


def test_training_is_that_without_an_average(tmp_path):
    with_it, ours = built(tmp_path / "a", "ema(0.7)")
    with_it.train()
    without, theirs = built(tmp_path / "b", None)
    without.train()
    for mine, other in zip(ours.path, theirs.path, strict=True):
        runs.assert_same_weights(mine, other)


class Torchs(Recorder):
    """`torch.optim.swa_utils.AveragedModel` beside ours."""

    def on_train_begin(self, *args, **kwargs):
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
        self.swa = AveragedModel(self.model, use_buffers=True)
        self.ema.update_parameters(self.model)

    def on_step_end(self, args, state, control, **kwargs):
        self.ema.update_parameters(self.model)
        if state.global_step > 3:
            self.swa.update_parameters(self.model)


@pytest.mark.parametrize("average", ["ema(0.8)", "swa(0.5)"])
def test_it_is_torch_s_averaged_model(average, tmp_path):
    model = tiny.tiny_model(dropout=0.1)
    beside = Torchs(model)
    one, _ = built(tmp_path, average, model=model, options={"callbacks": [beside]})
    one.train()
    theirs = beside.ema if average.startswith("ema") else beside.swa
    assert_close(one.model.state_dict(), theirs.module.state_dict())


@pytest.mark.parametrize("reg", ["plain", "rat(epsilon=0.5)", "mean_teacher(alpha=9, beta=0.6)"])
def test_how_examples_are_cut_changes_nothing(reg, tmp_path):
    """An average moves once per optimizer step: 16 = 4 x 4."""
    cuts = [{"per_device_train_batch_size": 16}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}]
    quiet = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "save_strategy": "no", "count": 48}
    found = []
    with keyed.noise():
        for cut in cuts:
            one, _ = built(tmp_path, "ema(0.6)", reg, kind=keyed.KeyedTrainer, **quiet, **cut)
            one.train()
            found.append(one)
    assert_close(found[0].model.state_dict(), found[1].model.state_dict(), 1e-5)
    assert eval_losses(found[0]) == pytest.approx(eval_losses(found[1]), rel=1e-4)


# --- NT-ASGD -----------------------------------------------------------------------------------------------------

SGD = {"optim": "sgd", "learning_rate": 0.6, "lr_scheduler_type": "constant", "max_steps": 10}
"""So fast that the weights jump about, and the loss of the evaluations with them."""


class Merity:
    """The trigger of main.py of awd-lstm-lm, line by line: `optimizer` becomes ASGD when it says so."""

    def __init__(self, nonmono):
        self.nonmono, self.best_val_loss, self.triggered = nonmono, [], False

    def see(self, val_loss):
        if not self.triggered and len(self.best_val_loss) > self.nonmono:
            last = len(self.best_val_loss) - self.nonmono
            self.triggered = val_loss > min(self.best_val_loss[:last])
        self.best_val_loss.append(val_loss)
        return self.triggered


@pytest.mark.parametrize("nonmono", [0, 1, 2, 5])
def test_the_trigger_is_that_of_the_authors_code(nonmono):
    draws = random.Random(nonmono)
    begun = 0
    for _ in range(200):
        losses = [draws.choice([1.0, 2.0, 3.0, 4.0]) for _ in range(draws.randint(0, 12))]
        theirs, expected = Merity(nonmono), None
        for number, loss in enumerate(losses):
            if theirs.see(loss) and expected is None:
                expected = 10 * (number + 1)
        evaluations = [(10 * (number + 1), loss) for number, loss in enumerate(losses)]
        assert Average("nt_asgd", nonmono).begin(1000, evaluations) == expected
        begun += expected is not None
    assert 20 < begun < 200


def nt_asgd_by_hand(one, path, nonmono):
    """What each evaluation has: the weights as they are until the trigger, then their mean since; and the trigger."""
    trigger, began, seen = Merity(nonmono), None, []
    for step in range(1, len(path)):
        weights = path[step]
        if began is not None:
            since = path[began + 1 : step + 1]
            weights = {name: sum(point[name] for point in since) / len(since) for name in weights}
        seen.append((weights, loss_of(one.model, weights, one.eval_dataset)))
        if trigger.see(seen[-1][1]) and began is None:
            began = step
    return seen, began


@pytest.mark.parametrize(("nonmono", "reg"), [(0, "plain"), (1, "fraternal"), (2, "plain")])
def test_nt_asgd_is_the_mean_since_the_trigger(nonmono, reg, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    one, recorder = built(tmp_path, f"nt_asgd({nonmono})", reg, **SGD, **best)
    one.train()
    seen, began = nt_asgd_by_hand(one, recorder.path, nonmono)
    assert began is not None, "this test needs a trigger"
    assert began < 8, "this test needs an early one"
    assert eval_losses(one) == pytest.approx([loss for _, loss in seen], rel=1e-4)
    for step, (weights, _) in enumerate(seen, 1):
        folder = tmp_path / f"checkpoint-{step}"
        assert_close(load_file(folder / "model.safetensors"), weights)
        assert_close(load_file(folder / "raw_model.safetensors"), recorder.path[step], 0)
    chosen = min(range(len(seen)), key=lambda place: seen[place][1])
    assert one.state.best_global_step == chosen + 1
    assert_close(one.model.state_dict(), seen[chosen][0])
    assert one.averaged_steps == max(chosen + 1 - began, 0)
    # Without an average the weights take the same way: the optimizer goes on as it was.
    without, theirs = built(tmp_path / "b", None, reg, **SGD, **best)
    without.train()
    for mine, other in zip(recorder.path, theirs.path, strict=True):
        runs.assert_same_weights(mine, other)


def test_torch_s_asgd_lags_by_one_step(tmp_path):
    """torch.optim.ASGD(t0=0, lambd=0) averages the same weights but the first."""
    one, recorder = built(tmp_path, "nt_asgd(0)", **SGD)
    one.train()
    _, began = nt_asgd_by_hand(one, recorder.path, 0)
    name = "classifier.weight"
    points = [point[name] for point in recorder.path[began:]]
    weight = nn.Parameter(points[0].clone())
    asgd = torch.optim.ASGD([weight], lr=0.6, t0=0, lambd=0)
    for before, after in itertools.pairwise(points):
        weight.grad = (before - after) / 0.6
        asgd.step()
    theirs, steps = asgd.state[weight]["ax"], len(points) - 1
    assert steps > 2
    ours = one.model.state_dict()[name].double()
    torch.testing.assert_close(steps * ours, points[1] + (steps - 1) * theirs, rtol=1e-5, atol=1e-5)


def test_nt_asgd_reads_what_the_best_model_is_chosen_by(tmp_path):
    """An accuracy that falls is worse, though the loss gets better."""
    accuracies = iter([0.1, 0.3, 0.2, 0.4])
    settings = ADAM | {"max_steps": 4, "metric_for_best_model": "accuracy", "greater_is_better": True}
    options = {"compute_metrics": lambda _: {"accuracy": next(accuracies)}}
    one, recorder = built(tmp_path, "nt_asgd(0)", options={**options}, **settings)
    one.add_callback(recorder)
    recorder.model = one.model
    one.train()
    assert one.averaged_steps == 1
    assert_close(one.model.state_dict(), recorder.path[-1], 0)


def test_nt_asgd_without_what_it_reads_is_refused(tmp_path):
    one, _ = built(tmp_path, "nt_asgd(5)", eval_strategy="no")
    with pytest.raises(ValueError, match=r"average='nt_asgd\(5\)' begins when an evaluation says so; set eval_strat"):
        one.train()
    sets = {"a": runs.examples(4), "b": runs.examples(4)}
    one, _ = built(tmp_path, "nt_asgd(5)", options={"eval_dataset": sets})
    with pytest.raises(ValueError, match=r"reads eval_loss, and evaluations give eval_a_loss, .* set metric_for_best"):
        one.train()
    one, _ = built(tmp_path, "nt_asgd(5)", options={"eval_dataset": sets}, metric_for_best_model="b_loss")
    one.train()
    assert one.averaged_steps == 0


RESUMED = [
    ("ema(0.7)", "plain", 2),
    ("swa(0.5)", "plain", 1),  # before it begins
    ("swa(0.5)", "rat(epsilon=0.5)", 4),
    ("ema(0.7)", "mean_teacher(alpha=9, beta=0.7)", 3),  # one average for both
    ("ema(0.7)", "mean_teacher(alpha=9, beta=0.9)", 5),  # and two
    *(("nt_asgd(0)", "fraternal", cut) for cut in range(1, STEPS)),
]


@pytest.mark.parametrize(("average", "reg", "cut"), RESUMED)
def test_resuming_continues_exactly(average, reg, cut, tmp_path):
    settings = {"count": 20, "gradient_accumulation_steps": 2}  # an epoch has 3 steps, the last a short one
    settings |= SGD | {"max_steps": STEPS} if average.startswith("nt_asgd") else {}
    straight, recorder = built(tmp_path / "a", average, reg, **settings)
    straight.train()
    assert straight.averaged_steps > 0
    resumed, again = built(tmp_path / "b", average, reg, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{cut}"))
    runs.assert_same_weights(runs.ran(resumed).weights, runs.ran(straight).weights)
    for mine, other in zip(again.path, recorder.path[cut:], strict=True):
        runs.assert_same_weights(mine, other)
    assert eval_losses(resumed) == eval_losses(straight)
    for step in range(cut + 1, STEPS + 1):
        ours, theirs = tmp_path / "b" / f"checkpoint-{step}", tmp_path / "a" / f"checkpoint-{step}"
        files = sorted(path.name for path in theirs.glob("*.safetensors"))
        assert files == sorted(path.name for path in ours.glob("*.safetensors"))
        for file in files:
            runs.assert_same_weights(load_file(ours / file), load_file(theirs / file))


def test_an_average_that_two_ask_for_is_kept_once(tmp_path):
    one, _ = built(tmp_path, "ema(0.7)", "mean_teacher(beta=0.7)", max_steps=1)
    one.train()
    files = {path.name for path in (tmp_path / "checkpoint-1").glob("*.safetensors")}
    assert files == {"model.safetensors", "raw_model.safetensors", "teacher.safetensors"}
    other, _ = built(tmp_path / "two", "ema(0.6)", "mean_teacher(beta=0.7)", max_steps=1)
    other.train()
    files = {path.name for path in (tmp_path / "two" / "checkpoint-1").glob("*.safetensors")}
    assert files >= {"averaged_model.safetensors", "teacher.safetensors"}


@pytest.mark.parametrize("reg", ["plain", "mean_teacher(alpha=9, beta=0.5)"])
def test_the_best_checkpoint_is_that_of_the_best_average(reg, tmp_path):
    """The weights jump about, and are best at another step than their average is."""
    jumping = {"learning_rate": 0.6, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": 1}
    one, recorder = built(tmp_path, "ema(0.5)", reg, **jumping, **best)
    one.train()
    rows, reached = one.eval_dataset, range(1, STEPS + 1)
    averages = [by_hand(recorder.path[: step + 1], "ema", 0.5) for step in reached]
    averaged = [loss_of(one.model, weights, rows) for weights in averages]
    raw = [loss_of(one.model, weights, rows) for weights in recorder.path[1:]]
    best_step = min(reached, key=lambda step: averaged[step - 1])
    assert best_step != min(reached, key=lambda step: raw[step - 1]), "this test needs them to disagree"
    assert best_step != STEPS
    assert one.state.best_global_step == best_step
    assert_close(one.model.state_dict(), averages[best_step - 1])
    assert one.averaged_steps == best_step


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_evaluation_leaves_the_weights(error, tmp_path):
    def broken(prediction):
        raise error("stop")

    one, recorder = built(tmp_path, "ema(0.7)", options={"compute_metrics": broken}, eval_steps=2)
    recorder.model = one.model
    one.add_callback(recorder)
    with pytest.raises(error):
        one.train()
    runs.assert_same_weights(recorder.weights(), recorder.path[-1])


class Lora(Recorder):
    def weights(self):
        return {name: value for name, value in super().weights().items() if "lora" in name or "classifier" in name}


def lora():
    torch.manual_seed(0)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "value"])
    return get_peft_model(tiny.tiny_model(dropout=0.1), config)


def test_of_an_adapter_only_what_is_trained_is_averaged(tmp_path):
    model = lora()
    recorder = Lora(model)
    one, _ = built(tmp_path / "a", "ema(0.7)", "rat(epsilon=0.5)", model, options={"callbacks": [recorder]})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one.train()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    names = set(load_file(tmp_path / "a" / "checkpoint-3" / "averaged_model.safetensors"))
    buffers = set(dict(model.named_buffers()))
    assert trained <= names
    assert names - trained <= buffers
    average = by_hand(recorder.path, "ema", 0.7)
    assert_close(model.state_dict(), {name: average[name] for name in trained})
    frozen = {name: value for name, value in model.named_parameters() if not value.requires_grad}
    assert all(torch.equal(value, before[name]) for name, value in frozen.items())
    saved = load_file(tmp_path / "a" / "checkpoint-3" / "adapter_model.safetensors")
    after_3 = by_hand(recorder.path[:4], "ema", 0.7)
    kept = {name.replace(".default", "").replace("modules_to_save.", ""): value for name, value in after_3.items()}
    assert_close(saved, {name: kept[name] for name in saved})
    again, _ = built(tmp_path / "b", "ema(0.7)", "rat(epsilon=0.5)", lora())
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    runs.assert_same_weights(again.model.state_dict(), one.model.state_dict())


class Normalised(nn.Module):
    """A user's own classifier, with a batch normalisation and an embedding that is tied to its output."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(tiny.VOCABULARY, 6)
        self.norm = nn.BatchNorm1d(6)
        self.out = nn.Linear(6, tiny.VOCABULARY)
        self.out.weight = self.table.weight

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.out(self.norm(self.table(input_ids).mean(1)))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


@pytest.mark.parametrize(("kind", "number"), [("ema", 0.7), ("swa", 0.5)])
def test_running_statistics_are_averaged_with_the_weights_and_tied_weights_once(kind, number, tmp_path):
    torch.manual_seed(0)
    model = Normalised()
    recorder = Recorder(model)
    one, _ = built(tmp_path, f"{kind}({number})", model=model, save_strategy="no", options={"callbacks": [recorder]})
    one.train()
    expected = by_hand(recorder.path, kind, number)
    assert recorder.path[0]["norm.running_var"].allclose(torch.ones(6).double())
    assert not expected["norm.running_var"].allclose(recorder.path[-1]["norm.running_var"], rtol=1e-2)
    expected["norm.num_batches_tracked"] = recorder.path[-1]["norm.num_batches_tracked"]
    assert_close(model.state_dict(), expected)
    assert model.out.weight is model.table.weight


def test_in_bf16_the_weights_in_fp32_are_averaged_in_fp32(tmp_path):
    one, recorder = built(tmp_path, "ema(0.999)", "rat(epsilon=0.5)", bf16=True, learning_rate=1e-4)
    one.train()
    assert one.model.dtype == torch.float32
    expected = by_hand(recorder.path, "ema", 0.999)
    assert_close(one.model.state_dict(), expected, 3e-7)
    assert_close(load_file(tmp_path / f"checkpoint-{STEPS}" / "averaged_model.safetensors"), expected, 3e-7)


def test_weights_in_bf16_are_averaged_in_fp32(tmp_path):
    model = tiny.tiny_model(dropout=0.1).to(torch.bfloat16)
    one, recorder = built(tmp_path, "ema(0.9)", model=model)
    one.train()
    saved = load_file(tmp_path / f"checkpoint-{STEPS}" / "averaged_model.safetensors")
    assert saved["classifier.weight"].dtype == torch.float32
    assert_close(saved, by_hand(recorder.path, "ema", 0.9), 1e-6)
    again, _ = built(tmp_path / "b", "ema(0.9)", model=tiny.tiny_model(dropout=0.1).to(torch.bfloat16))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    runs.assert_same_weights(again.model.state_dict(), one.model.state_dict())


def test_a_compiled_model_is_evaluated_with_its_average(tmp_path):
    torch.manual_seed(0)
    model = Normalised()
    recorder = Recorder(model)
    compiled = {"torch_compile": True, "torch_compile_backend": "eager", "options": {"callbacks": [recorder]}}
    one, _ = built(tmp_path, "ema(0.6)", model=model, save_strategy="no", max_steps=3, **compiled)
    one.train()
    assert one.model_wrapped is not model
    for step, loss in enumerate(eval_losses(one), 1):
        weights = by_hand(recorder.path[: step + 1], "ema", 0.6)
        weights["norm.num_batches_tracked"] = recorder.path[step]["norm.num_batches_tracked"]
        copy = Normalised().eval()
        copy.load_state_dict(weights)
        with torch.no_grad():
            losses = [copy(**runs.collate(one.eval_dataset[at : at + 8])).loss for at in (0, 8)]
        assert loss == pytest.approx(float(8 * losses[0] + losses[1]) / 9, rel=1e-4)


def test_a_gradient_that_is_not_finite_does_not_move_the_average(tmp_path):
    one, recorder = built(tmp_path, "ema(0.5)", max_steps=4)
    BadPass(one.model, 3, gradient=True)
    with pytest.warns(UserWarning, match="a gradient is not finite"):
        one.train()
    assert torch.equal(recorder.path[2]["classifier.weight"], recorder.path[3]["classifier.weight"])
    del recorder.path[3]
    assert_close(one.model.state_dict(), by_hand(recorder.path, "ema", 0.5))


def test_a_step_that_the_loss_scale_skips_does_not_move_the_average(tmp_path, monkeypatch):
    """What Accelerate says after the optimizer step of an fp16 run; there is no fp16 on a CPU."""
    one, recorder = built(tmp_path, "ema(0.5)", max_steps=4)
    skips = iter([True, True, False, False, True, True, False, False])  # asked by the Trainer, then by us
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda _: next(skips)))
    one.train()
    moved = [recorder.path[index] for index in (0, 2, 4)]
    assert_close(one.model.state_dict(), by_hand(moved, "ema", 0.5))


class BehindAnother(RegularizationMixin, Trainer):
    """The mixin in front of a trainer of one's own."""


def test_the_mixin_takes_it_as_an_argument(tmp_path):
    options = {"average": "ema(0.7)", "regularizer": mean_teacher(alpha=2), "data_collator": runs.collate}
    rows = {"train_dataset": runs.examples(24), "eval_dataset": runs.examples(5)}
    model = tiny.tiny_model(dropout=0.1)
    recorder = Recorder(model)
    args = runs.arguments(output_dir=str(tmp_path), max_steps=3)
    one = BehindAnother(model=model, args=args, callbacks=[recorder], **rows, **options)
    one.train()
    assert_close(model.state_dict(), by_hand(recorder.path, "ema", 0.7))
    assert one.average == Average("ema", 0.7)
    one.args.average = "swa(0.5)"
    with pytest.raises(ValueError, match=r"^average=ema\(0.7\) and args.average='swa\(0.5\)': .* keep one$"):
        one.train()


@pytest.mark.parametrize(
    "text",
    [
        *("ema", "ema()", "ema(1)", "ema(0)", "ema(1.5)", "ema(-0.5)", "swa(1)", "mean(0.5)", "ema(0.9.9)"),
        *("nt_asgd", "nt_asgd()", "nt_asgd(-1)", "nt_asgd(0.5)"),
    ],
)
def test_what_is_no_average_is_answered_in_one_line(text):
    with pytest.raises(ValueError, match="the number lies between 0 and 1") as error:
        runs.arguments(average=text)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["ema(0.99)", "swa(0.5)", "swa(0)", "ema(1e-3)", " swa( .25 ) ", "nt_asgd(5)", " nt_asgd( 0 )"]
)
def test_an_average_is_read_as_it_is_written(text):
    one = read_average(text)
    assert read_average(repr(one)) == one


@pytest.mark.parametrize(("share", "steps", "begin"), [(0.5, 10, 5), (0.5, 3, 1), (0.29, 100, 29), (0.9, 7, 6)])
def test_swa_begins_at_its_share_and_always_takes_the_last_step(share, steps, begin):
    assert Average("swa", share).begin(steps) == begin < steps


def test_another_average_than_the_checkpoint_s_is_refused(tmp_path):
    built(tmp_path, "swa(0.5)", max_steps=4)[0].train()
    checkpoint = str(tmp_path / "checkpoint-3")
    for average, steps, said in [
        ("ema(0.9)", 4, r"average='ema\(0.9\)', and the checkpoint was made with average='swa\(0.5\)'"),
        (None, 4, r"average=None, and the checkpoint was made with average='swa\(0.5\)'"),
        ("swa(0.5)", 8, "began after step 2 of the run that made the checkpoint, and begins after step 4 of 8"),
    ]:
        one, _ = built(tmp_path / "b", average, max_steps=steps)
        with pytest.raises(ValueError, match=said) as error:
            one.train(resume_from_checkpoint=checkpoint)
        assert "\n" not in str(error.value)
    built(tmp_path / "c", None, max_steps=4)[0].train()
    with pytest.raises(ValueError, match=r"averaged_model\.safetensors is missing"):
        built(tmp_path / "d", "ema(0.9)")[0].train(resume_from_checkpoint=str(tmp_path / "c" / "checkpoint-3"))


def test_sharded_weights_are_refused(tmp_path):
    one, _ = built(tmp_path, "ema(0.9)")
    next(one.model.parameters()).ds_tensor = torch.zeros(1)
    with pytest.raises(ValueError, match=r"average='ema\(0.9\)' keeps an average .* ZeRO-3 shards the weights"):
        one.train()


class StopEarly(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def test_a_run_that_ends_before_its_average_begins_says_so(tmp_path, caplog):
    one, recorder = built(tmp_path, "swa(0.5)")
    one.add_callback(StopEarly())
    one.train()
    assert "no weights were averaged by step 2, the model has its own" in caplog.text
    assert one.averaged_steps == 0
    assert_close(one.model.state_dict(), recorder.path[-1], 0)
    one.create_model_card()
    assert "average" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("reg", ["plain", "rat"])
def test_the_log_and_the_card_say_that_it_is_an_average(reg, tmp_path, caplog):
    one, _ = built(tmp_path, "swa(0.5)", reg)
    with caplog.at_level("INFO", logger="hf_rat"):
        one.train()
    assert "evaluated and saved: swa(0.5) of the weights" in caplog.text
    one.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "The weights are an average: `swa(0.5)` of those after 3 optimizer steps." in card
    state = json.loads((tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["hf_rat"]["attributes"]["average"] == "swa(0.5)"

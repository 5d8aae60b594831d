"""Averages and terms that wait until the task loss has fallen, against falls, means and schedules by hand."""

import math

import pytest
import runs
import tiny
import torch
from transformers import TrainerCallback

from hf_rat import Regularization, RegularizedTrainer, parse, swa
from hf_rat.engine.engine import Engine
from hf_rat.engine.loss_fall import LossFall
from hf_rat.regularizers.averages import Average, average_of
from hf_rat.regularizers.schedules import settled, timed
from hf_rat.regularizers.terms import is_plain
from hf_rat.trainer.average import read_average

STEPS = 20


def fall_of(losses, name="task"):
    """What it says after each step; `losses` has those of the micro-batches of each step."""
    fall, engine, found = LossFall(len(losses), 0.0, "swa"), Engine(tiny.tiny_model(), None), []
    for step, micro_batches in enumerate(losses):
        for loss in micro_batches:
            fall.add({"consistency": torch.tensor(99.0), name: torch.tensor(loss)}, step)
        fall.end_step(engine)
        found.append(fall.fallen)
    return found


def by_hand(losses):
    """The least mean of a tenth that has ended, over that of the first."""
    ends = sorted({math.ceil(tenth * len(losses) / 10) for tenth in range(1, 11)})
    means = [sum(losses[low:high]) / (high - low) for low, high in zip([0, *ends], ends, strict=False)]
    ended = [sum(end <= step for end in ends) for step in range(1, len(losses) + 1)]
    return [min([1.0, *(mean / means[0] for mean in means[:count])]) for count in ended]


@pytest.mark.parametrize("steps", [3, 10, 13, 20, 47])
@pytest.mark.parametrize("name", ["task", "adversarial_task"])
def test_it_compares_each_tenth_with_the_first(steps, name):
    losses = [5 / (step + 1) + step % 3 for step in range(steps)]
    assert fall_of([[loss] for loss in losses], name) == pytest.approx(by_hand(losses))


def test_micro_batches_count_alike_and_what_is_not_finite_does_not():
    found = fall_of([[4.0, 2.0], [math.nan, 3.0], [1.0, math.inf], [1.0, 2.0], *[[2.0]] * 16])
    assert found[:5] == [1.0, 1.0, 1.0, pytest.approx(4 / 9), pytest.approx(4 / 9)]
    assert found[-1] == pytest.approx(4 / 9)


def test_once_it_has_fallen_far_enough_no_loss_is_read_any_more():
    fall, engine = LossFall(10, 0.5, "swa"), Engine(tiny.tiny_model(), None)
    for step, loss in enumerate([4.0, 3.0, 1.0, 0.1]):
        fall.add({"task": torch.tensor(loss)}, step)
        fall.end_step(engine)
    assert fall.fallen == 0.25


@pytest.mark.parametrize("first", [-1.0, 0.0])
def test_a_loss_that_is_not_positive_tells_nothing(first):
    assert fall_of([[first], [first], [0.1], [0.1]]) == [1.0] * 4


def test_a_tenth_in_which_nothing_was_finite_is_not_the_first():
    assert fall_of([[math.nan], [4.0], [2.0], [1.0]]) == [1.0, 1.0, 0.5, 0.25]


class Recorder(TrainerCallback):
    """The weights after each step, as float64."""

    def __init__(self):
        self.path = []

    def on_step_end(self, *args, model, **kwargs):
        self.path.append({name: value.detach().double().clone() for name, value in model.state_dict().items()})


def built(folder, reg, **settings):
    torch.manual_seed(3)
    recorder = Recorder()
    options = {"train_dataset": runs.easy_examples(32), "eval_dataset": runs.easy_examples(9), "callbacks": [recorder]}
    settings = {"optim": "adamw_torch", "learning_rate": 2e-2, "max_steps": STEPS} | settings
    model = tiny.tiny_model(dropout=0.1, _attn_implementation="eager")
    return runs.trainer(reg, model=model, options=options, output_dir=str(folder), **settings), recorder


def learned_after(one, below, after=0.5):
    """The step after which the first weights count, by the logs; None if there is none."""
    logs = [log for log in one.state.log_history if "loss" in log]
    name = next((name for name in ("loss_task", "loss_adversarial_task") if name in logs[0]), "loss")
    shares = by_hand([log[name] for log in logs])
    return next((s for s, share in enumerate(shares, 1) if s > after * STEPS and share < below), None)


@pytest.mark.parametrize("reg", ["plain", "fgm(epsilon=0.5, begin=0.5)", "sam(epsilon=0.05)"])
@pytest.mark.parametrize("below", [1.0, 0.5, 0.25])
def test_the_average_begins_when_the_loss_has_fallen(reg, below, tmp_path):
    one, recorder = built(tmp_path, reg, average=f"swa(0.5, below={below})", gradient_accumulation_steps=2)
    one.train()
    begun = learned_after(one, below)
    assert one.averaged_steps == (STEPS - begun + 1 if begun else 0)
    points = recorder.path[begun - 1 :] if begun else recorder.path[-1:]
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value.double(), sum(point[name] for point in points) / len(points), msg=name)


def test_these_runs_begin_at_once_and_later(tmp_path):
    begun = []
    for below in (1.0, 0.25):
        one, _ = built(tmp_path, "plain", average=f"swa(0.5, below={below})", gradient_accumulation_steps=2)
        one.train()
        begun.append(learned_after(one, below))
    assert begun[0] == STEPS // 2 + 1 < begun[1]


@pytest.mark.parametrize("cut", [3, 11, 14, 18])
def test_resuming_continues_exactly(cut, tmp_path):
    settings = {
        "average": "swa(0.5, below=0.3)",
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_accumulation_steps": 2,
    }
    reg = "fgm(epsilon=0.5, begin=0.5, below=0.4)"
    straight, _ = built(tmp_path / "a", reg, **settings)
    straight.train()
    assert 0 < straight.averaged_steps < STEPS
    assert any("loss_adversarial_task" in log for log in straight.state.log_history)
    resumed, _ = built(tmp_path / "b", reg, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{cut}"))
    assert resumed.averaged_steps == straight.averaged_steps
    runs.assert_same_weights(runs.ran(resumed).weights, runs.ran(straight).weights)


def test_a_run_that_has_not_learned_keeps_its_weights_and_says_so(tmp_path, caplog):
    one, recorder = built(tmp_path, "auto", learning_rate=1e-5)
    one.train()
    share = by_hand([log["loss_task"] for log in one.state.log_history if "loss_task" in log])[-1]
    assert (
        f"no weights were averaged by step {STEPS}, the model has its own: the task loss has fallen to {share:.2f} of"
        in caplog.text
    )
    assert one.averaged_steps == 0
    for name, value in one.model.state_dict().items():
        assert torch.equal(value.double(), recorder.path[-1][name])


class SumOfLosses(RegularizedTrainer):
    """A loss of the user's own, with no name that we know."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.multi_margin_loss(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("reg", ["plain", "fgm(epsilon=0.5)"])
def test_it_reads_a_loss_of_the_user_s_own(reg, tmp_path):
    torch.manual_seed(3)
    settings = {"optim": "adamw_torch", "learning_rate": 2e-2, "max_steps": STEPS, "average": "swa(0.5, below=0.5)"}
    options = {"train_dataset": runs.easy_examples(32)}
    one = runs.trainer(reg, SumOfLosses, options=options, output_dir=str(tmp_path), **settings)
    one.train()
    begun = learned_after(one, 0.5)
    assert begun
    assert one.averaged_steps == STEPS - begun + 1


ADDED = {
    "fgm(epsilon=0.5, begin=0.3, below=0.5)": {"loss_adversarial_task"},
    "rat(epsilon=0.5, below=0.7)": {"loss_adversarial_task", "loss_adversarial_consistency"},
    "rdrop(below=0.7) + vat(begin=0.8)": {"loss_consistency", "loss_smoothness"},
}


@pytest.mark.parametrize("reg", ADDED)
def test_a_part_waits_in_a_trainer(reg, tmp_path):
    """Its passes are not made before; then all of it is on, whatever the loss is."""
    one, _ = built(tmp_path, reg, gradient_accumulation_steps=2)
    one.train()
    logs = [log for log in one.state.log_history if "loss" in log]
    fallen = [1.0, *by_hand([log["loss_task"] for log in logs])]
    for step, log in enumerate(logs):
        is_off = is_plain(settled(timed(parse(reg), STEPS), fallen[step]), step)
        assert bool(ADDED[reg] & log.keys()) != is_off
        assert fallen[step] >= fallen[step + 1]
    assert not ADDED[reg] & logs[1].keys()
    assert ADDED[reg] <= logs[-1].keys()


@pytest.mark.parametrize(
    "text", ["swa(0.5, below=0)", "swa(0.5, below=1.5)", "swa(0.5, below=)", "ema(0.9, below=0.5)"]
)
def test_what_is_no_share_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"waits until the task loss is below 0\.2 of what it was at first") as error:
        read_average(text)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"below|regularizer|above 0"):
        parse(text)


def test_it_is_written_as_it_is_read():
    one = Average("swa", 0.5, 0.2)
    assert one == read_average(repr(one)) == average_of(parse(f"fgm + {one!r}")) == average_of(swa(0.5, below=0.2))


# -- a regularizer that waits, in a loop of one's own --------------------------------------------------------------


def loop(reg, steps=STEPS):
    """(its names of losses, the weights after it) of each step of a bare loop."""
    torch.manual_seed(0)
    model = tiny.tiny_model(dropout=0.0).train()
    regularization = Regularization(reg, model, total_steps=steps)
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=2e-2), []
    batch = runs.collate(runs.easy_examples(8))
    for step in range(steps):
        named = regularization.backward(batch, step=step)
        optimizer.step()
        optimizer.zero_grad()
        regularization.after_step()
        found.append((named, {name: value.detach().clone() for name, value in model.state_dict().items()}))
    return found


def test_until_the_loss_has_fallen_it_is_plain_training_to_the_bit():
    waiting, plain = loop("fgm(epsilon=0.5, below=0.5)"), loop("plain")
    fallen = [1.0, *by_hand([float(named["task"]) for named, _ in waiting])]
    begun = next(step for step, share in enumerate(fallen) if share < 0.5)
    assert 1 < begun < STEPS
    for step, ((named, weights), (_, others)) in enumerate(zip(waiting, plain, strict=True)):
        assert ("adversarial_task" in named) == (step >= begun)
        if step < begun:
            runs.assert_same_weights(weights, others)
    assert not torch.equal(waiting[-1][1]["classifier.weight"], plain[-1][1]["classifier.weight"])


def test_from_then_on_it_is_what_it_is_without_waiting():
    waiting = loop("fgm(epsilon=0.5, below=0.5)")
    begun = next(step for step, (named, _) in enumerate(waiting) if "adversarial_task" in named)
    scheduled = loop(f"fgm(epsilon=0.5, begin={begun})")
    runs.assert_same_weights(waiting[-1][1], scheduled[-1][1])


def test_a_loop_that_does_not_say_how_long_it_is_or_where_a_step_ends_is_told():
    with pytest.raises(ValueError, match=r"below= of fgm\(.* nobody said how many optimizer steps it has"):
        Regularization("fgm(below=0.5)", tiny.tiny_model())
    regularization = Regularization("fgm(below=0.5)", tiny.tiny_model(), total_steps=10)
    batch = runs.collate(runs.easy_examples(4))
    regularization.backward(batch, step=0)
    with pytest.raises(ValueError, match=r"after_step\(\) was not called after step 0: fgm\(.* waits until") as error:
        regularization.backward(batch, step=1)
    assert "\n" not in str(error.value)


def test_the_price_is_that_of_all_of_it():
    regularization = Regularization("fgm(below=0.5)", tiny.tiny_model(), total_steps=10)
    assert regularization.cost().forwards == Regularization("fgm", tiny.tiny_model()).cost().forwards == 2

"""Plain SGD whose rate is divided where the validation loss does not improve: how recurrent nets are trained."""

import pytest
import runs
import tiny
import torch
from transformers import TrainerCallback

STEPS = 10
FLAGS = {
    "optim": "sgd",
    "learning_rate": 0.9,
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": '{"factor": 0.5, "patience": 0, "threshold": 0}',
    "max_grad_norm": 0.3,
}


class Recorder(TrainerCallback):
    """The rate and the gradients, already clipped, of each step; the weights before and after it."""

    def __init__(self):
        self.rates, self.gradients, self.weights = [], [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def train(folder, reg="plain", resume=None, **more):
    torch.manual_seed(3)
    recorder = Recorder()
    each = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options = {"eval_dataset": runs.examples(9, seed=5), "callbacks": [recorder]}
    settings = {**FLAGS, **each, **more, "max_steps": STEPS, "output_dir": str(folder)}
    one = runs.trainer(reg, model=tiny.tiny_model(dropout=0.1), options=options, **settings)
    one.train(resume_from_checkpoint=resume)
    losses = [log["eval_loss"] for log in one.state.log_history if "eval_loss" in log]
    return recorder, losses


@pytest.mark.parametrize("reg", ["plain", "rdrop"])
def test_the_rate_is_divided_where_the_loss_does_not_improve(reg, tmp_path):
    recorder, losses = train(tmp_path, reg)
    rate, best, expected = 0.9, float("inf"), []
    for loss in losses:
        expected.append(rate)
        if loss >= best:
            rate /= 2
        best = min(best, loss)
    assert recorder.rates == pytest.approx(expected)
    assert 2 <= len(set(expected)) < STEPS, "this test needs both kinds of evaluation"
    for step in range(STEPS):
        for name, weight in recorder.weights[step].items():
            moved = weight - recorder.rates[step] * recorder.gradients[step][name]
            torch.testing.assert_close(recorder.weights[step + 1][name], moved)


def test_resuming_continues_exactly_and_an_average_goes_beside(tmp_path):
    straight, losses = train(tmp_path / "a", average="nt_asgd(0)")
    for cut in (2, 7):
        resumed, again = train(tmp_path / str(cut), average="nt_asgd(0)", resume=str(tmp_path / f"a/checkpoint-{cut}"))
        assert resumed.rates == straight.rates[cut:]
        assert again == losses
        runs.assert_same_weights(resumed.weights[-1], straight.weights[-1])

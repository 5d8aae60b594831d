"""A regularizer that teaches nothing is told once: evaluation mode, no dropout, a gain that stays exactly zero."""

import warnings

import pytest
import torch
from test_dropout_rates import Own
from tiny import tiny_batch, tiny_model
from tiny_tasks import collate, task_model, task_rows
from torch import nn

from hf_rat import Regularization, rdrop
from hf_rat.regularizers import parse


def told(expression, model, steps=4, accumulation=1, losses=False):
    """The warnings of each step."""
    regularization, found = Regularization(parse(expression), model), []
    for step in range(steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(accumulation):
                ask = regularization.losses if losses else regularization.backward
                ask(tiny_batch(seed=step), step=step, accumulation=accumulation)
        found.append([str(warning.message) for warning in caught if "requires_grad" not in str(warning.message)])
    regularization.close()
    assert all("\n" not in message for messages in found for message in messages)
    return found


@pytest.mark.parametrize("expression", ["plain", "fgm", "rdrop", "rat", "vat"])
@pytest.mark.parametrize("losses", [False, True])
def test_a_model_in_evaluation_mode_is_told_once(expression, losses):
    first, *later = told(expression, tiny_model(dropout=0.1).eval(), losses=losses)
    assert len(first) == 1
    assert "BertForSequenceClassification is trained in evaluation mode" in first[0]
    assert "model.train()" in first[0]
    assert not any(later)


@pytest.mark.parametrize(
    "expression", ["plain", "fgm", "rdrop", "rat", "vat", "smart", "freelb", "expectation_linear"]
)
def test_a_model_that_learns_from_it_is_not_told(expression):
    assert not any(told(expression, tiny_model(dropout=0.1)))


def test_a_model_that_is_looked_at_in_evaluation_first_is_not_told():
    """Whether a causal language model shifts its labels is found by a pass in evaluation, which draws nothing."""
    model, batch = task_model("causal_lm_llama", dropout=0.1), collate(task_rows("causal_lm_llama", 4))
    regularization = Regularization(rdrop(), model.train())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert regularization.backward(batch)["consistency"] > 0


class Unused(nn.Module):
    """Draws and does nothing with it."""

    def forward(self, x):
        torch.rand(3)
        return x


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("expression", "name"), [("rdrop", "consistency"), ("rat", "adversarial_consistency"), ("pi_model", "smoothness")]
)
def test_a_gain_of_exactly_zero_is_told_after_three_steps(expression, name, accumulation):
    """This model draws random numbers, so that nothing can be said at once."""
    found = told(expression, Own(Unused()).train(), steps=5, accumulation=accumulation)
    assert [len(messages) for messages in found] == [0, 0, 1, 0, 0]
    assert f"{name} of {expression}(" in found[2][0]
    assert "exactly 0 in the first 3 steps" in found[2][0]
    for cause in ("evaluation mode", "no dropout", "epsilon may be 0", "site"):
        assert cause in found[2][0]


class Aside(nn.Module):
    """Its output is left unused: a site that the loss does not depend on."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return x + 0.0 * self.linear(x)


def test_an_adversary_at_a_site_that_does_nothing_is_told():
    found = told("fgm(site='inner.0.linear')", Own(Aside()).train())
    assert [len(messages) for messages in found] == [0, 0, 1, 0]
    assert "adversarial_task - task of fgm(" in found[2][0]


def test_a_gain_that_comes_later_is_not_told():
    """LoRA begins at nothing: its dropout changes no logit in the first step."""

    class Low(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up, self.drop = nn.Linear(16, 4), nn.Linear(4, 16, bias=False), nn.Dropout(0.5)
            nn.init.zeros_(self.up.weight)

        def forward(self, x):
            return x + self.up(self.drop(self.down(x)))

    model = Own(Low()).train()
    regularization = Regularization(rdrop(), model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(5):
            losses = regularization.backward(tiny_batch(seed=step), step=step)
            assert (float(losses["consistency"]) == 0) == (step == 0)
            optimizer.step()


def test_a_gain_that_begins_later_is_watched_then():
    found = told("rdrop(begin=2)", Own(Unused()).train(), steps=6)
    assert [len(messages) for messages in found] == [0, 0, 0, 0, 1, 0]

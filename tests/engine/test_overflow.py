"""A forward that overflows, in a loop of one's own as the README has it: the weights stay finite, and it is told."""

import warnings

import pytest
import runs
import tiny
import torch
from test_regularization import corrupt
from torch import nn
from torch.nn import functional as F

from hf_rat import Regularization, RegularizedTrainer, fgm, parse, rdrop, vat

RECIPES = ["plain", "fgm", "rdrop", "rat", "vat", "freelb(start=0)", "neftune"]
quiet = pytest.mark.filterwarnings("ignore:.*not finite", "ignore:.*no dropout")


class Overflowing(nn.Module):
    """Its activations overflow where token 7 is read: as fp16 does beyond 65504, here from weights of 1e30 on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(tiny.VOCABULARY, 8)
        self.hidden = nn.Linear(8, 8)
        self.output = nn.Linear(8, 3)
        self.dropout = nn.Dropout(0.1)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.hidden(self.embedding(input_ids).mean(1))
        x = x * torch.where((input_ids == 7).any(1, keepdim=True), 1e30, 1.0)
        logits = self.output(self.dropout(torch.tanh(x) + (x * x).sin()))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def batches():
    good, bad = tiny.tiny_batch(4, seed=1), tiny.tiny_batch(4, seed=2)
    good["input_ids"][good["input_ids"] == 7] = 8
    bad["input_ids"][0, 1] = 7
    return good, bad


def loop(regularization, model, loader, optimizer):
    """The README's."""
    model.train()
    for step, batch in enumerate(loader):
        regularization.backward(batch, step=step)
        optimizer.step()
        regularization.after_step()
        optimizer.zero_grad()


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


@quiet
@pytest.mark.parametrize("expression", RECIPES)
@pytest.mark.parametrize("single_backward", [False, True])
def test_a_forward_that_overflows_changes_no_weight(expression, single_backward):
    model, (good, bad) = Overflowing(), batches()
    assert not torch.isfinite(model(**bad)["logits"]).all()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    regularization = Regularization(parse(expression), model, single_backward=single_backward)
    before = weights(model)
    loop(regularization, model, [bad], optimizer)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert regularization.nonfinite.steps == 1
    loop(regularization, model, [good], optimizer)
    assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())
    assert any(not torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@quiet
def test_every_parameter_of_the_pass_has_a_gradient_of_zeros():
    """For an exchange of gradients waits for each of them."""
    model, (_, bad) = Overflowing(), batches()
    assert Regularization(rdrop(), model).backward(bad) == {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@quiet
def test_losses_of_which_nothing_is_finite_can_be_back_propagated():
    model, (_, bad) = Overflowing(), batches()
    named = Regularization(rdrop(), model).losses(bad)
    sum(named.values()).backward()
    assert list(named) == ["nothing_finite"]
    assert not any(gradient.any() for gradient in tiny.gradients(model).values())


class SteepAtZero(nn.Module):
    """A finite loss whose gradient is not: the square root at 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 1.0]))

    def forward(self, x, labels=None):
        return {"loss": ((self.weight * x).square().sum(-1) + labels).sqrt().mean(), "logits": self.weight * x}


@quiet
def test_gradients_that_are_not_finite_skip_the_step_in_the_readmes_loop():
    model = SteepAtZero()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    regularization = Regularization(parse("plain"), model)
    x = torch.tensor([[1.0, 0.0]])
    steep, gentle = {"x": x, "labels": torch.zeros(1)}, {"x": x, "labels": torch.ones(1)}
    loop(regularization, model, [steep], optimizer)
    assert model.weight.tolist() == [0.0, 1.0]
    assert regularization.nonfinite.steps == 1
    loop(regularization, model, [gentle], optimizer)
    assert model.weight.tolist() == [0.0, pytest.approx(0.99)]  # the loss is flat there, the decay is not


# -- it is told, and what is logged is true ---------------------------------------------------------------------------


def test_a_term_that_is_dropped_is_told_once():
    model = tiny.tiny_model(dropout=0.1)
    regularization = Regularization(fgm(), model)
    corrupt(model, float("inf"), {1, 3, 4})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(3):
            regularization.backward(tiny.tiny_batch(), step=step)
    texts = [str(warning.message) for warning in told if "not finite" in str(warning.message)]
    assert [text.split(" is not finite")[0] for text in texts] == ["the loss adversarial_task", "the loss task"]
    assert "of step 0" in texts[0]
    assert "\n" not in texts[0]


@quiet
def test_what_a_trainer_logs_beside_a_dropped_term_is_the_task_loss():
    """The passes of vat: the clean one, that of the search, and the smoothness, which is not finite here."""
    model = tiny.tiny_model(dropout=0.0)
    one = runs.trainer(kind=RegularizedTrainer, model=model, count=4, options={"regularizer": vat(epsilon=0.5)})
    batch = one._prepare_inputs(runs.collate(runs.examples(4)))
    expected = tiny.tiny_model(dropout=0.0)(**batch).loss.item()
    corrupt(model, float("nan"), {2})
    one.train()
    (log,) = runs.ran(one).logs
    assert log["loss"] == pytest.approx(log["loss_task"], rel=1e-6)
    assert log["loss_task"] == pytest.approx(expected, rel=1e-5)
    assert log["nonfinite_steps"] == 1


@quiet
def test_a_step_of_which_nothing_is_finite_has_no_loss_in_the_log():
    model = tiny.tiny_model(dropout=0.1)
    one = runs.trainer("rdrop", model=model, count=4, logging_nan_inf_filter=False)
    before = runs.ran(one).weights
    corrupt(model, float("nan"), {0})
    one.train()
    (log,) = runs.ran(one).logs
    assert torch.isnan(torch.tensor(log["loss"]))
    runs.assert_same_weights(runs.ran(one).weights, before)

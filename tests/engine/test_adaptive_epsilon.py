"""target=: the controller of epsilon finds the one computed by hand, stays there, and is moved by nothing bad."""

import math
import warnings
from itertools import pairwise

import pytest
import runs
import tiny
import torch
from test_regularization import corrupt
from tiny import tiny_batch, tiny_model
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, fgm, parse, rat
from hf_rat.engine import adaptive_epsilon
from hf_rat.engine.adaptive_epsilon import FIRST, LEAST
from hf_rat.regularizers import L2, Adaptive, Gradient
from hf_rat.trainer import speed

pytestmark = pytest.mark.filterwarnings("ignore:.* has no dropout")


SLOW, PACE = adaptive_epsilon.PACE, 0.1


@pytest.fixture(autouse=True)
def _faster(request, monkeypatch):
    """Where it arrives does not depend on how fast."""
    if "slow_pace" not in request.fixturenames:
        monkeypatch.setattr(adaptive_epsilon, "PACE", PACE)


@pytest.fixture
def slow_pace():
    """As it is."""


class Toy(nn.Module):
    """A task loss that is a known function of the word vectors, plus a constant."""

    def __init__(self, constant=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(60, 6)
        self.constant = constant

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask, labels=None):
        x = self.words(input_ids) * attention_mask.unsqueeze(-1)
        return SequenceClassifierOutput(loss=self.per_example(x).mean() + self.constant, logits=x.sum(1)[:, :3])


class Quadratic(Toy):
    """L = mean 1/2 ||x||^2: a step of epsilon ||x|| uphill makes it (1 + epsilon)^2 as large, whatever the weights."""

    def per_example(self, x):
        return x.square().flatten(1).sum(1) / 2


class Linear(Toy):
    """L = mean sum_t v x_t."""

    def __init__(self, constant=0.0):
        super().__init__(constant)
        self.register_buffer("v", torch.linspace(-1, 1, 6))

    def per_example(self, x):
        return (x @ self.v).sum(1)


def trained(regularization, steps, learning_rate=0.0, batches=tiny_batch, first=0):
    """Steps of SGD; what is logged after each."""
    optimizer = torch.optim.SGD(regularization.unwrapped.parameters(), lr=learning_rate)
    logs = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        regularization.backward(batches(seed=step), step=step)
        optimizer.step()
        regularization.after_step()
        logs.append(regularization.adaptive.logs())
    return logs


def test_it_arrives_at_the_epsilon_by_hand_and_stays_while_the_weights_move():
    model = Quadratic().train()
    before = model.words.weight.detach().norm()
    logs = trained(Regularization("fgm(epsilon=0.5, unit='relative', target=0.44)", model), 150, learning_rate=2e-3)
    found = [log["reg_epsilon"] for log in logs]
    assert model.words.weight.norm() < 0.97 * before
    assert found[0] == pytest.approx(
        0.5 * FIRST * math.exp(PACE * (1 - ((1 + 0.5 * FIRST) ** 2 - 1) / 0.44)), rel=1e-3
    )
    assert max(found) < 0.2 * 1.01, "it does not overshoot"
    assert found[110:] == pytest.approx([0.2] * 40, rel=1e-3)
    assert [log["reg_rise"] for log in logs[110:]] == pytest.approx([0.44] * 40, rel=1e-3)


def test_it_arrives_at_the_epsilon_by_hand_where_each_example_has_its_own_slope():
    model, batch = Linear(constant=20.0).train(), tiny_batch()
    x = model.words(batch["input_ids"]).detach() * batch["attention_mask"].unsqueeze(-1)
    tokens = batch["attention_mask"].sum(1)
    # dL/dx is v on each token, of length ||v|| sqrt(tokens).
    gain = (x.flatten(1).norm(dim=1) * model.v.norm() * tokens.sqrt()).mean()
    by_hand = 0.1 * model(**batch).loss.item() / gain.item()
    logs = trained(
        Regularization("fgm(epsilon=0.8, unit='relative', target=0.1)", model), 140, batches=lambda seed: batch
    )
    assert by_hand < 0.8
    assert [log["reg_epsilon"] for log in logs[110:]] == pytest.approx([by_hand] * 30, rel=1e-3)


@pytest.mark.parametrize("recipe", ["fgsm", "pgd", "rat"])
def test_every_recipe_that_has_it_arrives(recipe):
    """A box moves each number by its share of the root mean square: to first order as far as the ball."""
    size = "step=0.5, " if recipe == "pgd" else ""
    model = Quadratic().train()
    logs = trained(
        Regularization(f"{recipe}(epsilon=0.5, {size}unit='relative', target=0.21)", model), 150, batches=tiny_batch
    )
    assert sum(log["reg_rise"] for log in logs[100:]) / 50 == pytest.approx(0.21, rel=0.02)
    if recipe != "fgsm":
        assert logs[-1]["reg_epsilon"] == pytest.approx(0.1, rel=1e-2)


def test_it_begins_small_and_never_exceeds_what_was_given():
    """What can never rise that much is perturbed by the epsilon that was given, and no more."""
    regularization = Regularization(fgm(epsilon=0.3, unit="relative", target=50.0), Quadratic().train())
    first = regularization.backward(tiny_batch())
    assert float(first["adversarial_task"] / first["task"]) == pytest.approx((1 + 0.3 * FIRST) ** 2, rel=1e-4)
    regularization.after_step()
    found = [log["reg_epsilon"] for log in trained(regularization, 60, first=1)]
    steps = [later / before for before, later in pairwise(found)]
    assert max(steps) <= math.exp(PACE) * (1 + 1e-9)
    assert found[-1] == 0.3
    last = regularization.backward(tiny_batch(), step=100)
    assert float(last["adversarial_task"] / last["task"]) == pytest.approx(1.3**2, rel=1e-4)


def test_a_hundred_steps_make_it_at_most_eight_times_as_large(slow_pace):
    """A model from scratch must have learned something by the time that it is far."""
    regularization = Regularization(fgm(epsilon=0.5, unit="relative", target=50.0), Quadratic().train())
    assert trained(regularization, 100)[-1]["reg_epsilon"] == pytest.approx(
        0.5 * FIRST * math.exp(100 * SLOW), rel=0.05
    )
    assert math.exp(100 * SLOW) < 8


def test_it_shrinks_as_slowly_and_not_to_nothing():
    regularization = Regularization(fgm(epsilon=0.5, unit="relative", target=1e-9), Quadratic().train())
    found = [log["reg_epsilon"] for log in trained(regularization, 60)]
    assert found[0] == pytest.approx(0.5 * FIRST * math.exp(-PACE))
    assert found[-1] == 0.5 * LEAST


def test_several_epsilons_and_a_search_of_several_steps_shrink_alike():
    """The epsilon of a pass, and the step and start of an ascent, are shares of what is given."""
    model = Quadratic().train()
    several = Regularization(rat(epsilons=(0.4, 0.2), unit="relative", target=0.3), model)
    losses = several.backward(tiny_batch())
    rises = [(1 + FIRST * epsilon) ** 2 for epsilon in (0.4, 0.2)]
    assert float(losses["adversarial_task"] / losses["task"]) == pytest.approx(sum(rises) / 2, rel=1e-5)
    several.after_step()
    assert several.adaptive.logs()["reg_epsilon"] == pytest.approx(
        0.4 * several.adaptive.share_of(*several.adaptive._shares)
    )
    steps = Regularization("pgd(epsilon=9.0, step=0.4, steps=2, unit='relative', target=0.3)", model)
    losses = steps.backward(tiny_batch())
    assert float(losses["adversarial_task"] / losses["task"]) == pytest.approx((1 + 2 * FIRST * 0.4) ** 2, rel=1e-5)


# -- a step is a step ------------------------------------------------------------------------------------------------


def test_micro_batches_are_one_step():
    """16 = 4 x 4, in a loop of one's own."""

    def run(parts):
        regularization = Regularization("rat(epsilon=0.8, unit='relative', target=0.2)", tiny_model())
        optimizer, logs = torch.optim.SGD(regularization.unwrapped.parameters(), lr=0.1), []
        for step in range(4):
            rows = runs.examples(16, seed=step)
            optimizer.zero_grad()
            for part in range(parts):
                batch = runs.collate(rows[part * 16 // parts : (part + 1) * 16 // parts])
                regularization.backward(batch, step=step, accumulation=parts)
            optimizer.step()
            regularization.after_step()
            logs.append(regularization.adaptive.logs())
        return logs

    for one, four in zip(run(1), run(4), strict=True):
        assert four == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert len({log["reg_epsilon"] for log in run(4)}) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("calls", [{0}, {1}])
def test_a_step_that_is_not_finite_does_not_move_it(calls, value):
    model = tiny_model()
    regularization = Regularization("fgm(epsilon=0.5, unit='relative', target=0.2)", model)
    corrupt(model, value, calls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        regularization.backward(tiny_batch(), step=0)
    regularization.after_step()
    assert regularization.adaptive.logs() == {"reg_epsilon": 0.5 * FIRST}
    (log,) = trained(regularization, 1, first=1)
    assert log["reg_epsilon"] != 0.5 * FIRST, "the next one does, though the step was counted"


def test_a_gradient_that_is_not_finite_does_not_move_it_either():
    model = tiny_model()
    regularization = Regularization("fgm(epsilon=0.5, unit='relative', target=0.2)", model)
    handle = model.classifier.weight.register_hook(lambda slope: slope * math.nan)
    with pytest.warns(UserWarning, match="a gradient is not finite"):
        regularization.backward(tiny_batch())
    regularization.after_step()
    assert regularization.adaptive.logs() == {"reg_epsilon": 0.5 * FIRST}
    handle.remove()


def test_a_loss_that_is_no_share_is_told_once_and_moves_nothing():
    regularization = Regularization("fgm(epsilon=0.5, unit='relative', target=0.2)", Linear(constant=-90.0).train())
    with pytest.warns(UserWarning, match="the task loss is -.* does not move") as told:
        logs = trained(regularization, 3)
    assert len([warning for warning in told if "does not move" in str(warning.message)]) == 1
    assert logs == [{"reg_epsilon": 0.5 * FIRST}] * 3


def test_steps_in_which_it_is_off_do_not_move_it():
    regularization = Regularization(
        "fgm(epsilon=0.5, unit='relative', target=0.3, begin=2, every=2)", Quadratic().train()
    )
    found = [0.5 * FIRST, *[log["reg_epsilon"] for log in trained(regularization, 6)]]
    moved = [before != after for before, after in pairwise(found)]
    assert moved == [False, False, True, False, True, False]


def test_a_loop_that_does_not_say_that_a_step_ended_is_told():
    regularization = Regularization("fgm(epsilon=0.5, unit='relative', target=0.2)", tiny_model())
    regularization.backward(tiny_batch(), step=0, accumulation=2)
    regularization.backward(tiny_batch(), step=0, accumulation=2)
    with pytest.raises(ValueError, match=r"after_step\(\) was not called after step 0") as error:
        regularization.backward(tiny_batch(), step=1)
    assert "\n" not in str(error.value)


def test_a_loop_that_makes_its_own_backward_has_it_too():
    regularization = Regularization("fgm(epsilon=0.5, unit='relative', target=0.44)", Quadratic().train())
    for step in range(120):
        torch.stack(list(regularization.losses(tiny_batch(), step=step).values())).sum().backward()
        regularization.after_step()
    assert regularization.adaptive.logs()["reg_epsilon"] == pytest.approx(0.2, rel=1e-2)


# -- several, and what a checkpoint keeps ----------------------------------------------------------------------------


def test_each_has_its_own():
    one, other = "fgm(epsilon=0.5, unit='relative', target=0.44)", "pgd(epsilon=0.4, unit='relative', target=0.21)"
    logs = trained(Regularization(parse(f"{one} + 0.5 * {other}"), Quadratic().train()), 120)
    assert set(logs[-1]) == {"reg_epsilon", "reg_rise", "reg_epsilon_2", "reg_rise_2"}
    assert logs[-1]["reg_epsilon"] == pytest.approx(0.2, rel=1e-2)
    assert logs[-1]["reg_epsilon_2"] == pytest.approx(0.1 * 0.4 / 0.15, rel=1e-2)  # three steps of .05 are within .4
    assert logs[-1]["reg_rise_2"] == pytest.approx(0.21, rel=1e-2)


def test_equal_ones_are_one():
    twice = "fgm(epsilon=0.5, unit='relative', target=0.44) + rat(epsilon=0.5, unit='relative', target=0.44)"
    regularization = Regularization(parse(twice), Quadratic().train())
    assert list(trained(regularization, 100)[-1]) == ["reg_epsilon", "reg_rise"]
    assert regularization.adaptive.logs()["reg_epsilon"] == pytest.approx(0.2, rel=1e-2)


def test_a_checkpoint_goes_on_exactly():
    text = "fgm(epsilon=0.5, unit='relative', target=0.3) + rat(epsilon=0.4, unit='relative', target=0.2)"
    model = tiny_model()
    straight = Regularization(parse(text), model)
    trained(straight, 5, 0.1)
    kept, weights = straight.state_dict(), {name: x.clone() for name, x in model.state_dict().items()}
    expected = trained(straight, 5, 0.1, first=5)
    straight.close()
    model.load_state_dict(weights)
    resumed = Regularization(parse(text), model)
    resumed.load_state_dict(kept)
    assert trained(resumed, 5, 0.1, first=5) == expected


def test_a_checkpoint_without_it_is_told():
    kept = Regularization("fgm(unit='relative')", tiny_model()).state_dict()
    regularization = Regularization("fgm(epsilon=0.5, unit='relative', target=0.3)", tiny_model())
    with pytest.warns(UserWarning, match=r"the checkpoint has no epsilon for target=0.3"):
        regularization.load_state_dict(kept)
    assert regularization.adaptive.logs() == {"reg_epsilon": 0.5 * FIRST}


def test_the_trainer_logs_it():
    one = runs.trainer("rat(epsilon=0.5, unit='relative', target=0.2)")
    one.train()
    logged = [log["reg_epsilon"] for log in one.state.log_history if "reg_epsilon" in log]
    assert len(logged) == len(set(logged)) == 6
    assert "reg_epsilon" not in runs.trainer("rat").train().metrics


def test_timing_a_step_moves_nothing():
    regularization = Regularization("fgm(epsilon=0.5, unit='relative', target=0.3)", tiny_model(dropout=0.1))
    regularization.backward(tiny_batch(), step=3)
    before = {at: sums.clone() for at, sums in regularization.adaptive.sums.items()}
    speed.tokens_per_second(regularization, [tiny_batch()], step=3)
    assert all(torch.equal(sums, before[at]) for at, sums in regularization.adaptive.sums.items())


@pytest.mark.parametrize("unit", ["absolute", "embedding"])
def test_another_unit_is_refused(unit):
    with pytest.raises(ValueError, match=f'target=0.3 with unit="{unit}".*add unit="relative"') as error:
        fgm(target=0.3, unit=unit)
    assert "\n" not in str(error.value)


def test_what_it_wraps_is_what_is_planned():
    at = Gradient(L2(0.5, unit="relative"), site="bert.encoder.layer.0")
    assert Adaptive(at, 0.3).site == at.site
    assert Adaptive(at, 0.3).uses_clean_slope
    cost = Regularization("rat(epsilon=0.5, unit='relative', target=0.3)", tiny.tiny_model()).cost()
    assert cost == Regularization("rat", tiny.tiny_model()).cost()

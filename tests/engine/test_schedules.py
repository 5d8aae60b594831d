"""begin, warmup, end, every: which steps are regularized, how much, what a run then costs, and what is refused."""

import inspect
import warnings
from dataclasses import dataclass

import keyed
import pytest
import runs
import torch
from test_dropout_rates import Own
from test_zero_gains import Unused, told
from tiny import tiny_batch, tiny_model

from hf_rat import Regularization, fgm, parse, rat, rdrop, vat
from hf_rat.passes.point import Point
from hf_rat.regularizers import RECIPES, Adversarial, TaskLoss, Term
from hf_rat.trainer import speed
from hf_rat.trainer.announcement import announcement

pytestmark = pytest.mark.filterwarnings("ignore:.* has no dropout")


def weights(expression, total=None, steps=12):
    """What stands before the regularizing part in each step; 0 where training is plain."""
    regularization = Regularization(parse(expression), tiny_model(), total_steps=total, length_buckets="off")
    full = Regularization(parse(expression.partition("(")[0]), tiny_model(), length_buckets="off").backward(
        tiny_batch()
    )
    found = []
    for step in range(steps):
        losses = regularization.backward(tiny_batch(), step=step)
        found.append(float(losses["adversarial_task"] / full["adversarial_task"]) if len(losses) > 1 else 0.0)
    return pytest.approx(found, rel=1e-4)


# What it says, by hand, for a run of 12 steps.
BY_HAND = {
    "begin=3, end=6": [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0],
    "begin=0.25, end=0.5": [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0],
    "end=2": [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "begin=0.75": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
    "begin=2, every=4": [0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0],
    "every=3, end=0.5": [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    "begin=0.5, warmup=0.25": [0, 0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1],
    "begin=4, warmup=3, every=2": [0, 0, 0, 0, 0.25, 0, 0.75, 0, 1, 0, 1, 0],
    "begin=0.04": [1] * 12,  # less than half a step
    "begin=1, end=100": [0, *[1] * 11],
}


@pytest.mark.parametrize("schedule", BY_HAND)
def test_each_step_has_the_weight_by_hand(schedule):
    assert weights(f"fgm({schedule})", total=12) == BY_HAND[schedule]


@pytest.mark.parametrize("name", [name for name in RECIPES if "begin" in inspect.signature(RECIPES[name]).parameters])
def test_every_recipe_has_all_of_it(name):
    regularization = Regularization(RECIPES[name](begin=0.2, end=0.8, every=3), tiny_model(), total_steps=10)
    on = [len(regularization.backward(tiny_batch(), step=step)) > 0 for step in range(10)]
    assert all(on)
    costs = [regularization.cost(step) for step in range(10)]
    full, bare = Regularization(RECIPES[name](), tiny_model()).cost(), Regularization("plain", tiny_model()).cost()
    assert regularization.cost() == full
    assert costs == [full if step in (2, 5) else bare for step in range(10)]


def test_whole_numbers_need_no_length():
    assert weights("fgm(begin=2, end=4, every=1)", steps=6) == [0, 0, 1, 1, 0, 0]


def test_parts_of_a_sum_have_their_own():
    regularization = Regularization("fgm(end=0.5) + vat(begin=0.5)", tiny_model(), total_steps=4)
    seen = [set(regularization.backward(tiny_batch(), step=step)) for step in range(4)]
    assert seen == [{"task", "adversarial_task"}] * 2 + [{"task", "smoothness"}] * 2


@dataclass(frozen=True)
class Twice(Term):
    """A term of a user's own, around others."""

    inner: Term

    def parts(self, step):
        for weight, part in self.inner.parts(step):
            yield 2 * weight, part

    def here(self, point: Point):
        return {}


@pytest.mark.parametrize("wrap", [lambda term: 0.5 * term, lambda term: term + rdrop(), Twice])
def test_shares_are_found_wherever_a_schedule_is(wrap):
    term = wrap(fgm(begin=0.5))
    regularization = Regularization(term, tiny_model(dropout=0.1), total_steps=4)
    on = ["adversarial_task" in regularization.backward(tiny_batch(), step=step) for step in range(4)]
    assert on == [False, False, True, True]
    assert regularization.regularizer == term, "what is shown and saved is what was said"


def test_a_term_inside_an_adversary_has_a_schedule_too():
    fast = fgm().body.right.at
    term = TaskLoss() + Adversarial(fast, TaskLoss() + rdrop(begin=0.5).body)
    regularization = Regularization(term, tiny_model(dropout=0.1), total_steps=4)
    seen = ["adversarial_consistency" in regularization.backward(tiny_batch(), step=step) for step in range(4)]
    assert seen == [False, False, True, True]


# -- refused, each in one line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda: fgm(begin=5, end=5), lambda: rat(begin=0.5, end=0.3), lambda: vat(begin=3, end=1)]
)
def test_an_end_before_the_beginning(make):
    with pytest.raises(ValueError, match="end must come after begin") as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("expression", "total", "said"),
    [
        ("fgm(begin=0.3)", None, r"begin=0.3 of fgm\(.*nobody said how many there are: .*total_steps=.*max_steps"),
        ("rdrop + 0.5 * vat(end=0.3)", None, r"end=0.3 of vat\("),
        ("rat(warmup=0.3)", None, r"warmup=0.3 of rat\("),
        ("fgm(begin=12)", 12, r"fgm\(.*begins at step 12, and the run has 12 of them \(0 to 11\)"),
        ("rdrop + fgm(begin=100)", 12, r"^fgm\(.*begins at step 100"),
        ("fgm(begin=0.99)", 12, "begins at step 12"),
        ("fgm(begin=5, end=0.25)", 12, "begins at step 5 of 12 and ends at step 3; end must come later"),
        ("fgm(begin=0.5, end=4)", 12, "begins at step 6 of 12 and ends at step 4"),
        ("fgm(begin=0.3, end=0.31)", 12, "begins at step 4 of 12 and ends at step 4"),
        ("fgm", 0, "total_steps=0 must be the number of optimizer steps"),
        ("fgm", 2.5, "total_steps=2.5 must be"),
    ],
)
def test_a_schedule_that_cannot_be(expression, total, said):
    with pytest.raises(ValueError, match=said) as error:
        Regularization(parse(expression), tiny_model(), total_steps=total)
    assert "\n" not in str(error.value)


def test_a_trainer_says_so_before_the_first_step():
    with pytest.raises(ValueError, match="begins at step 10, and the run has 3 of them"):
        runs.trainer("fgm(begin=10)", max_steps=3)
    one = runs.trainer("fgm(begin=10)")  # an epoch of six steps
    with pytest.raises(ValueError, match="begins at step 10, and the run has 6 of them"):
        one.train()
    assert one.state.global_step == 0


# -- in the Trainer --------------------------------------------------------------------------------------------------


def test_the_trainer_knows_the_length_of_its_run():
    """24 examples in micro-batches of 4, two of them a step: 3 steps an epoch, 6 in two."""
    settings = {"gradient_accumulation_steps": 2, "num_train_epochs": 2}
    with keyed.noise():
        shares = runs.run("rdrop(begin=0.34, end=0.8, warmup=0.17)", keyed.KeyedTrainer, **settings).logs
        steps = runs.run("rdrop(begin=2, end=5, warmup=1)", keyed.KeyedTrainer, **settings).logs
    assert shares == steps
    assert ["loss_consistency" in log for log in shares] == [False, False, True, True, True, False]
    assert shares[2]["loss_consistency"] < 0.7 * shares[3]["loss_consistency"]


def test_a_tail_is_one_line_of_flags():
    """Regularized while the learning rate decays, and only then."""
    tail = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 3}}
    one = runs.trainer(reg="fgm(epsilon=0.5)", reg_begin="0.7", max_steps=10, **tail)
    one.train()
    logs = [log for log in one.state.log_history if "loss" in log]
    rates = [log["learning_rate"] for log in logs]
    assert ["loss_adversarial_task" in log for log in logs] == [False] * 7 + [True] * 3
    # The decay begins with a step at the full rate.
    assert rates[:8] == pytest.approx([0.1] * 8)
    assert 0.1 > rates[8] > rates[9]


@pytest.mark.parametrize("saved", [6, 4])
def test_another_length_is_told_where_it_matters(saved, tmp_path):
    def trainer(reg, steps):
        torch.manual_seed(0)
        return runs.trainer(reg, max_steps=steps, save_strategy="steps", save_steps=2, output_dir=str(tmp_path))

    for reg, matters in (("rdrop(begin=0.5)", saved != 6), ("rdrop(begin=1)", False)):
        trainer(reg, saved).train()
        checkpoint = str(tmp_path / "checkpoint-2")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(reg, 6).train(resume_from_checkpoint=checkpoint)
        said = [str(warning.message) for warning in caught if "the checkpoint is of a run of" in str(warning.message)]
        assert len(said) == matters
        assert all(f"a run of {saved} steps, and this one has 6" in message for message in said)


# -- what it costs, and what is told ---------------------------------------------------------------------------------


@pytest.fixture
def line(tmp_path):
    def build(expression, total=100, **settings):
        regularization = Regularization(parse(expression), tiny_model(dropout=0.1), total_steps=total, **settings)
        return "; ".join(announcement(regularization, runs.arguments(output_dir=str(tmp_path))).values())

    return build


def test_the_price_is_that_of_the_run(line):
    said = line("fgm(begin=0.7)")
    assert (
        "1 forward and 1 backward passes in 70 of 100 steps, 2 forward and 2 backward passes in 30 of 100 steps"
        in said
    )
    assert "about 1.3 times the time over the run and 1 times the activations" in said  # .7 + .3 x 1.94
    assert "in 10 of 100 steps" in line("rat(every=10)")
    assert "about 1.2 times the time over the run and 2 times" in line("rat(every=10)")


def test_the_price_of_all_steps_is_told_as_before(line):
    for expression in ("rat", "rat(warmup=0.3)", "fgm + rdrop"):
        assert "per step (plain: 1 and 1)" in line(expression)
        assert "over the run" not in line(expression)
    assert "passes per step" in line("rat(begin=3)", total=None)


def test_a_sum_whose_parts_are_never_on_together_is_never_told_to_cost_both(line):
    said = line("fgm(end=0.5) + vat(begin=0.5)")
    assert "2 forward and 2 backward passes in 50 of 100 steps" in said
    assert "3 forward and 2 backward passes and 1 for slopes in 50 of 100 steps" in said
    assert "4 forward" not in said


def test_the_passes_of_a_run_are_those_that_are_told():
    """Counted at the model."""
    model, passes = tiny_model(dropout=0.1), []
    regularization = Regularization("fgm(begin=0.25, every=2) + rdrop(end=0.5)", model, total_steps=8)
    regularization.backward(tiny_batch(), step=0)  # looks
    model.register_forward_hook(lambda module, args, output: passes.append(len(output.logits)))
    for step in range(8):
        passes.clear()
        regularization.backward(tiny_batch(), step=step)
        assert sum(passes) / 4 == regularization.cost(step).forwards
    told = sum(count * regularization.cost(step).forwards for step, count in regularization.schedule.phases)
    assert told == sum(regularization.cost(step).forwards for step in range(8))


def test_the_measured_price_is_that_of_the_run_too(monkeypatch):
    """A regularized step takes twice as long as a plain one here, and there are three of ten."""
    monkeypatch.setattr(speed, "tokens_per_second", lambda *given: (50.0, 100.0))
    metrics = runs.trainer("fgm(begin=0.7)", max_steps=10, no_price=False).train().metrics
    assert metrics["train_time_factor"] == pytest.approx(1.3)
    metrics = runs.trainer("fgm", max_steps=10, no_price=False).train().metrics
    assert metrics["train_time_factor"] == pytest.approx(2.0)


def test_it_is_timed_in_a_step_in_which_it_is_on(monkeypatch):
    seen = []
    monkeypatch.setattr(
        speed, "tokens_per_second", lambda regularization, batches, step: seen.append(step) or (1.0, 1.0)
    )
    one = runs.trainer("fgm(end=0.5)", max_steps=4, no_price=False)
    one.train()
    assert Regularization("fgm(end=2)", tiny_model()).cost(seen[0]).forwards == 2


def test_a_zero_gain_is_told_after_three_steps_in_which_it_was_on():
    found = told("rdrop(begin=1, every=2)", Own(Unused()).train(), steps=8)
    assert [len(messages) for messages in found] == [0, 0, 0, 0, 0, 1, 0, 0]


def test_plain_steps_before_and_after_are_those_of_plain():
    """Nothing of the regularizer touches a step in which it is off, not even the generator."""

    def gradients(expression, step):
        torch.manual_seed(0)
        model = tiny_model(dropout=0.1)
        Regularization(parse(expression), model, total_steps=10, length_buckets="off").backward(
            tiny_batch(), step=step
        )
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for step in (0, 9):
        for mine, other in zip(gradients("fgm(begin=0.3, end=0.6)", step), gradients("plain", step), strict=True):
            assert torch.equal(mine, other)

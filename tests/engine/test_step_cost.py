"""The cost benchmark measures what it says: its baselines compute the methods, its counters count."""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import pytest
import runs
import torch
from scipy.stats import entropy
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model

from hf_rat.engine.regularization import Regularization
from hf_rat.regularizers import parse

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hand_written = load("hand_written")
step_cost = load("step_cost")


def contestant(name, dropout=0.1):
    model = tiny_model(dropout=dropout)
    if name in step_cost.BASELINES:
        backward = partial(step_cost.BASELINES[name], model)
    else:
        backward = Regularization(parse(name), model).backward
    return step_cost.Contestant(name, model, torch.optim.AdamW(model.parameters()), backward)


@pytest.mark.parametrize(
    ("baseline", "settings", "expression"),
    [
        (hand_written.plain, {}, "plain"),
        (hand_written.classic_fgm, {"epsilon": 0.5}, 'fgm(epsilon=0.5, scope="table")'),
        (hand_written.authors_rat, {"epsilon": 0.5, "alpha": 0.5}, 'rat(epsilon=0.5, alpha=0.5, scope="table")'),
    ],
)
@pytest.mark.filterwarnings("ignore:.*has no dropout")
def test_baselines_compute_the_methods_that_they_stand_for(baseline, settings, expression):
    theirs, ours, inputs = tiny_model(), tiny_model(), tiny_batch()
    loss = baseline(theirs, inputs, **settings)
    named = Regularization(parse(expression), ours).backward(inputs)
    assert sum(named.values()).item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients(ours), gradients(theirs))


def test_baselines_leave_the_table_as_it_was():
    model = tiny_model(dropout=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hand_written.authors_rat(model, tiny_batch())
    hand_written.classic_fgm(model, tiny_batch())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_symmetric_kl_is_that_of_scipy():
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    p, q = first.softmax(-1).double().numpy(), second.softmax(-1).double().numpy()
    wanted = (entropy(p, q, axis=1) + entropy(q, p, axis=1)).mean() / 2
    assert hand_written.symmetric_kl(first, second).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "forwards", "backwards"),
    [
        ("hand-written plain", 1, 1),
        ("hand-written FGM", 2, 2),
        ("hand-written R-Drop", 2, 2),
        ("authors' R-AT", 3, 4),
    ],
)
def test_passes_are_counted(name, forwards, backwards):
    runner = contestant(name)
    step_cost.count_flops_and_passes(runner, tiny_batch())
    assert (runner.forwards, runner.backwards) == (forwards, backwards)


@pytest.mark.parametrize("name", sorted(runs.SETTINGS))
def test_passes_are_those_that_the_regularizer_states(name):
    runner = contestant(name)
    runner.step(tiny_batch())  # a site may look for its layer once, with a forward of its own
    step_cost.count_flops_and_passes(runner, tiny_batch())
    stated = Regularization(parse(name), tiny_model(dropout=0.1)).cost()
    assert (runner.forwards, runner.backwards) == (stated.forwards, stated.backwards + stated.slopes)


def test_flops_follow_the_passes():
    plain, authors = contestant("hand-written plain"), contestant("authors' R-AT")
    for runner in (plain, authors):
        step_cost.count_flops_and_passes(runner, tiny_batch())
    # A backward of a linear layer is two products of the size of its forward's: 1 + 2 = 3 against 3 + 4 * 2 = 11.
    assert authors.flops / plain.flops == pytest.approx(11 / 3, rel=0.02)


def test_peak_is_that_of_the_running_sum():
    megabyte = 2**20

    def allocate(inputs):
        first = torch.empty(3 * megabyte, dtype=torch.uint8)
        second = torch.empty(4 * megabyte, dtype=torch.uint8)
        del first
        third = torch.empty(2 * megabyte, dtype=torch.uint8)
        return second, third

    runner = contestant("hand-written plain")
    runner.backward = allocate
    peak = step_cost.measure_peak(runner, tiny_batch())
    assert peak == 7 * megabyte, "not the sum of all (9), nor what is left at the end (6)"


def test_a_race_pairs_the_rounds():
    runners = [contestant(name) for name in ("hand-written plain", "rat")]
    step_cost.race(runners, rounds=3, threads=1, batch=tiny_batch)
    assert [len(runner.seconds) for runner in runners] == [3, 3]
    plain, rat = runners
    plain.seconds, rat.seconds = [1.0, 2.0, 4.0], [3.0, 4.0, 10.0]
    plain.peak_bytes = plain.flops = rat.peak_bytes = rat.flops = 1
    assert step_cost.summary(rat, plain)["time"] == 2.5, "the median of 3, 2 and 2.5"

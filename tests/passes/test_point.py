"""Points: passes run once, slopes ride on backwards or are sought aside, and no parameter notices a search."""

import pytest
import torch
from tiny import gradients, tiny_batch, tiny_model

from hf_rat.passes.batch import Batch
from hf_rat.passes.dropout import SharedMasks
from hf_rat.passes.execution import Execution
from hf_rat.passes.plan import Plan
from hf_rat.passes.point import Point
from hf_rat.passes.sites import EMBEDDINGS, LOGITS_INPUT, SITES
from hf_rat.passes.sites.base import batch_tensors
from hf_rat.regularizers.divergences import mean_divergence

PROBLEM = "single_label_classification"
SLOPE = Plan(slope_sites=frozenset({EMBEDDINGS}))


class Runner:
    """Runs a model for a Batch and remembers how many rows each forward had."""

    def __init__(self, dropout=0.0, **settings):
        self.model = tiny_model(dropout=dropout)
        self.rows = []
        sites = {name: SITES[name](self.model) for name in (EMBEDDINGS, LOGITS_INPUT)}
        self.inputs = tiny_batch()
        self.batch = Batch(self.inputs, lambda: PROBLEM, Execution(self.run, sites.__getitem__, **settings))

    def run(self, inputs):
        self.rows.append(inputs["input_ids"].shape[0])
        outputs = self.model(**inputs)
        return outputs.loss, outputs.logits

    @property
    def untouched(self):
        return all(parameter.grad is None for parameter in self.model.parameters())


def test_passes_run_when_first_asked_for_and_once():
    runner = Runner(dropout=0.2)
    point = Point(runner.batch)
    assert runner.rows == []
    first = point.logits[0]
    assert point.task is point.task
    assert point.logits[0] is first
    assert runner.rows == [4]
    assert runner.batch.tally.forwards == 1


def test_several_passes_are_one_tiled_batch_with_masks_of_their_own():
    runner = Runner(dropout=0.2)
    point = Point(runner.batch, plan=Plan(passes=3))
    assert len(point.logits) == 3
    assert runner.rows == [12]
    assert runner.batch.tally.forwards == 3
    assert not torch.allclose(point.logits[0], point.logits[1])
    expected = torch.stack([torch.nn.functional.cross_entropy(z, runner.inputs["labels"]) for z in point.logits])
    torch.testing.assert_close(point.task, expected.mean())


def test_tiling_repeats_every_example_and_leaves_the_rest():
    runner = Runner()
    batch = Batch({**runner.inputs, "flag": True, "scale": torch.tensor(2.0)}, lambda: PROBLEM, Execution(None, None))
    tiled = batch.tile(2)
    for name, value in runner.inputs.items():
        assert torch.equal(tiled[name], torch.cat([value, value]))
    assert tiled["flag"] is True
    assert tiled["scale"] == 2.0


@pytest.mark.parametrize("reason", ["masks", "rates"])
def test_passes_that_differ_run_one_by_one(reason):
    runner = Runner(dropout=0.2)
    plans = {"masks": Plan(passes=2, share_masks=True), "rates": Plan(passes=2, rates=(0.0, 0.0))}
    logits = Point(runner.batch, plan=plans[reason]).logits
    assert runner.rows == [4, 4]
    assert torch.equal(logits[0], logits[1]) == (reason == "rates")  # rate 0 twice is the same pass twice


def test_a_move_per_pass_and_a_shared_move_agree():
    runner = Runner()
    shape = runner.batch.geometry(EMBEDDINGS).shape
    one, other = torch.randn(2, *shape)
    both = Point(runner.batch, {EMBEDDINGS: torch.stack([one, other])}, plan=Plan(passes=2))
    for move, logits in zip((one, other), both.logits, strict=True):
        torch.testing.assert_close(Point(runner.batch, {EMBEDDINGS: move}).logits[0], logits)


def test_moves_add_up():
    runner = Runner()
    shape = runner.batch.geometry(EMBEDDINGS).shape
    one, other = torch.randn(2, *shape)
    twice = Point(runner.batch).at(EMBEDDINGS, one).at(EMBEDDINGS, other)
    torch.testing.assert_close(twice.logits[0], Point(runner.batch).at(EMBEDDINGS, one + other).logits[0])


def finite_difference(runner, function, where, direction, h=1e-3):
    runner.model.double()
    with torch.no_grad():
        there = [function(Point(runner.batch, {EMBEDDINGS: where + s * h * direction})) for s in (1, -1)]
    runner.model.float()
    return float(there[0] - there[1]) / (2 * h)


@pytest.mark.parametrize("how", ["left", "taken", "sought"])
@pytest.mark.parametrize("at_zero", [True, False])
def test_the_slope_of_the_task_loss_is_its_derivative(how, at_zero):
    runner = Runner(streaming=how == "left")
    shape = runner.batch.geometry(EMBEDDINGS).shape
    where = torch.zeros(shape) if at_zero else 0.3 * torch.randn(shape)
    point = Point(runner.batch, {EMBEDDINGS: where}, plan=SLOPE if how != "sought" else Plan())
    if how != "sought":
        loss = point.task
        point.take_slopes(alone=True)
        if how == "left":
            loss.backward()
    slope = point.slope(EMBEDDINGS)
    assert runner.untouched == (how != "left")
    assert runner.batch.tally.forwards == 1
    assert runner.batch.tally.slopes == (0 if how == "left" else 1)
    direction = torch.randn(shape)
    expected = finite_difference(runner, lambda p: p.task, where, direction)
    assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_slope_of_a_divergence_is_its_derivative():
    runner = Runner()
    shape = runner.batch.geometry(EMBEDDINGS).shape
    here = Point(runner.batch).logits[0].detach()
    where, direction = 0.3 * torch.randn(2, *shape)

    def climb(there):
        return mean_divergence(runner.batch, "kl", here, there)

    slope = Point(runner.batch, {EMBEDDINGS: where}).slope(EMBEDDINGS, climb)
    assert runner.untouched
    assert runner.batch.tally.searches == 1
    expected = finite_difference(runner, lambda p: climb(p.logits[0]), where, direction)
    assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_search_replays_the_masks_of_the_point_when_told_to():
    runner = Runner(dropout=0.3)
    point = Point(runner.batch, plan=Plan(share_masks=True))
    here = point.logits[0].detach()
    shape = runner.batch.geometry(EMBEDDINGS).shape
    replayed = point.at(EMBEDDINGS, torch.zeros(shape), point.masks).logits[0]
    assert torch.equal(replayed, here)
    assert not torch.allclose(point.at(EMBEDDINGS, torch.zeros(shape)).logits[0], here)


def test_a_slope_whose_group_was_skipped_is_zero():
    runner = Runner()
    point = Point(runner.batch, plan=SLOPE)
    assert torch.isfinite(point.task)
    point.take_slopes(alone=True)
    runner.batch.skip_group()
    assert not point.slope(EMBEDDINGS).any()
    assert point.slope(EMBEDDINGS).shape == runner.batch.geometry(EMBEDDINGS).shape


def test_a_slope_whose_group_was_not_back_propagated_is_an_error():
    point = Point(Runner().batch, plan=SLOPE)
    with pytest.raises(RuntimeError, match="no slope at embeddings: the group of losses before was not back-prop"):
        point.slope(EMBEDDINGS)
    assert torch.isfinite(point.task)
    point.take_slopes(alone=True)
    with pytest.raises(RuntimeError, match="no slope at embeddings") as error:
        point.slope(EMBEDDINGS)
    assert "\n" not in str(error.value)
    point.task.backward()
    assert point.slope(EMBEDDINGS).any()


def test_skipping_a_group_leaves_the_slopes_that_are_there():
    runner = Runner()
    point = Point(runner.batch, plan=SLOPE)
    loss = point.task
    point.take_slopes(alone=True)
    loss.backward()
    runner.batch.skip_group()  # one that runs after it, at another point
    assert point.slope(EMBEDDINGS).any()


def test_a_skipped_group_is_no_excuse_for_one_before_it():
    runner = Runner()
    first, second = Point(runner.batch, plan=SLOPE), Point(runner.batch, plan=SLOPE)
    assert torch.isfinite(first.task + second.task)
    first.take_slopes(alone=True)
    second.take_slopes(alone=True)
    runner.batch.skip_group()
    assert not second.slope(EMBEDDINGS).any()
    with pytest.raises(RuntimeError, match="no slope"):
        first.slope(EMBEDDINGS)


def test_searches_add_nothing_to_gradients_that_are_there():
    runner = Runner(dropout=0.2)
    Point(runner.batch).task.backward()
    before = gradients(runner.model)
    shape = runner.batch.geometry(EMBEDDINGS).shape
    Point(runner.batch, {EMBEDDINGS: torch.zeros(shape)}, SharedMasks(torch.device("cpu"))).slope(EMBEDDINGS)
    after = gradients(runner.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_scaled_slope_points_the_same_way():
    """The fp16 loss scale multiplies a loss before its slope is taken."""
    slopes = []
    for factor in (1.0, 2.0**16):
        runner = Runner(scale=lambda loss, factor=factor: loss * factor)
        slopes.append(Point(runner.batch).slope(EMBEDDINGS))
    torch.testing.assert_close(slopes[1], slopes[0] * 2.0**16)


def test_the_task_loss_of_a_batch_without_labels_is_one_line():
    runner = Runner()
    del runner.inputs["labels"]
    with pytest.raises(
        ValueError, match="returned no loss for a batch of input_ids, attention_mask: the task loss needs labels"
    ) as error:
        _ = Point(runner.batch).task
    assert "\n" not in str(error.value)


def test_a_batch_without_tensors_is_one_line():
    with pytest.raises(ValueError, match="holds no tensors"):
        batch_tensors({"text": ["a"]})

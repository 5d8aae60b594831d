"""A point as a part of its batch sees it, whose examples alone further passes run over."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rat.passes.batch import Batch
from hf_rat.passes.part import Part
from hf_rat.passes.plan import Plan
from hf_rat.passes.point import Point
from hf_rat.passes.problems import losses_of_examples


def chosen(point: Point, part: Part | None) -> Batch:
    """The examples of a part, of which the first pass here tells the hardest; None: all."""
    return point.batch if part is None else point.batch.chosen(part, lambda: point.logits[0].detach())


def first_logits(point: Point, batch: Batch) -> Tensor:
    """The logits of the first pass at a point, of its batch or a part of it."""
    return point.logits[0] if batch.rows is None or batch is point.batch else point.logits[0][batch.rows]


def over(point: Point, batch: Batch, plan: Plan) -> Point:
    """A point for the examples of a part alone, under dropout masks of its own."""
    if batch is point.batch:
        return point
    moves = {}
    for site, move in point.moves.items():
        per_pass = move.dim() - len(point.batch.geometry(site).shape)
        assert batch.rows is not None
        moves[site] = move.index_select(per_pass, batch.rows)
    return Point(batch, moves, rate=point.rate, plan=plan)


def further(point: Point, part: Part) -> Point:
    """The passes beside those at a point that are asked of a part alone."""
    if part not in point.further:
        plan = Plan(passes=dict(point.plan.further)[part], also_masks=point.plan.also_masks, beside=True)
        point.further[part] = over(point, chosen(point, part), plan)
    return point.further[part]


def task_over(point: Point, part: Part | None) -> Tensor:
    """The task loss over a part, detached; that of the whole batch where nobody knows the loss of an example."""
    task = point.task.detach()
    found = None if part is None else losses_of_examples(point.batch.problem, point.batch.inputs, point.logits[0])
    if found is None:
        return task
    (losses, counts), rows = found, chosen(point, part).rows
    sums, density = losses * counts, counts.sum().clamp(min=1) / len(counts)
    known = torch.isclose(sums.mean() / density, task.float(), rtol=1e-2)
    return torch.where(known, sums[rows].mean() / density, task)

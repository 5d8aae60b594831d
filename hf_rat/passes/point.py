"""A point of a batch: the passes of the model over the batch at one perturbation, kept once made.

Terms never see the model. They ask a point for its passes (`task`, `logits`), for the slope of something at it
(`slope`), and for other points (`at`). Everything about running a model is here, in batch.py, execution.py,
length_buckets.py, dropout.py and the sites.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_rat.passes.batch import Batch
from hf_rat.passes.below import Below
from hf_rat.passes.copies import tile
from hf_rat.passes.dropout import SharedMasks
from hf_rat.passes.execution import Pass, Run
from hf_rat.passes.length_buckets import join, mean_of, share_casts
from hf_rat.passes.part import Part
from hf_rat.passes.plan import ONE_PASS, Plan
from hf_rat.passes.problems import count_labels, is_labelled
from hf_rat.passes.sites import TOP
from hf_rat.passes.sites.weights import at_weights, is_weights


class Point:
    """The passes over a batch at one perturbation, run when first asked for and kept.

    Args:
        batch: the batch.
        moves: site -> perturbation there, (batch, ...), or (passes, batch, ...) where every pass has its own.
        masks: dropout masks that the first pass shares with other points.
        rate: dropout rate of every pass; None leaves the model's own.
        plan: what will be asked of the passes.
    """

    def __init__(
        self,
        batch: Batch,
        moves: Mapping[str, Tensor] | None = None,
        masks: SharedMasks | None = None,
        rate: float | None = None,
        plan: Plan = ONE_PASS,
    ) -> None:
        self.batch, self.rate, self.plan = batch, rate, plan
        self.moves = {**{site: self._zeros(site) for site in plan.also_masks}, **(moves or {})}
        self.masks = batch.shared_masks() if plan.share_masks and masks is None else masks
        self._leaves: dict[str, Tensor] = {}
        self._outputs: set[str] = set()  # sites whose move stands for the whole output
        self._weights: dict[str, Tensor] = {}  # site of weights -> their move in all passes
        self._slopes: dict[str, Tensor] = {}
        self.further: dict[Part, Point] = {}  # part of the batch -> the point with its further passes

    def at(self, site: str, move: Tensor, masks: SharedMasks | None = None, plan: Plan = ONE_PASS) -> Point:
        """The point that lies `move` away from here at `site`."""
        move = move.detach()
        if site in self.moves:
            move = self.moves[site] + move
        return Point(self.batch, {**self.moves, site: move}, masks, self.rate, plan)

    def _zeros(self, site: str) -> Tensor:
        geometry = self.batch.geometry(site)
        return torch.zeros(geometry.shape, device=geometry.device)

    @cached_property
    def _below(self) -> Below | None:
        """What the passes begin from, if nothing below the cut is moved; None: they run the whole model."""
        elsewhere = {*self.moves, *self.plan.slope_sites} - {TOP}
        return None if self.batch.cut is None or elsewhere else self.batch.below

    @property
    def _share(self) -> float:
        """How much of the model a pass runs."""
        return 1 if self._below is None else self._below.share

    # -- the passes --------------------------------------------------------------------------------------------------

    @property
    def task(self) -> Tensor:
        """Task loss, a scalar: the mean over the passes."""
        loss = self._passes[0]
        if loss is None:
            raise ValueError(
                f"the model returned no loss for a batch of {', '.join(self.batch.inputs)}: the task loss needs "
                "labels, and a loss in the output, by that name or as the first of a tuple"
            )
        return self.batch.weighed(loss)

    @property
    def logits(self) -> list[Tensor]:
        """Logits of each pass."""
        return self._passes[1]

    @cached_property
    def _passes(self) -> tuple[Tensor | None, list[Tensor]]:
        plan = self.plan
        if plan.teaches:
            apart = self.batch.execution.separate_slope_pass and plan.slope_sites
            return self._run_after_a_search() if apart else self._run()
        # Not under no_grad: autocast would keep the cast weights without a graph for the passes that need one.
        self.batch.tally.searches += plan.passes * self._share
        with self.batch.execution.no_sync():
            loss, logits = self._run()
        return (
            (loss, logits) if plan.search else (None if loss is None else loss.detach(), [z.detach() for z in logits])
        )

    def _run_after_a_search(self) -> tuple[Tensor | None, list[Tensor]]:
        """The passes, after passes of the same dropout masks that only give the announced slopes."""
        repeated = self.batch.shared_masks()
        # A copy, so that masks which are yet to be drawn are those of the passes proper.
        plan = replace(self.plan, search=True)
        search = Point(self.batch, self.moves, copy.copy(self.masks), self.rate, plan)
        with repeated.replay():
            self._slopes = search._take_slopes(keep_graph=False)
        with repeated.replay():
            return self._run()

    def _run(self) -> tuple[Tensor | None, list[Tensor]]:
        batch, plan, count = self.batch, self.plan, self.plan.passes
        execution, teaches = batch.execution, plan.teaches
        lean = teaches and execution.rerun is not None and (count > 1 or plan.beside)
        moves = self._perturbations(shared=lean or (teaches and bool(batch.split)))
        run = execution.run if teaches else execution.search or execution.run
        run = at_weights(self._weights, run, execution.open_site)
        share = self._share  # which runs the layers below, a part of a forward too
        batch.tally.forwards += count * share
        tiles = count > 1 and plan.rates is None and self.masks is None and not lean
        if tiles and batch.why_one_by_one is None and (self._below is None or self._below.can_copy):
            # One doubled batch: fewer, larger kernels; its halves draw random numbers of their own.
            tiled = {site: self._per_pass(site, move).flatten(0, 1) for site, move in moves.items()}
            with batch.update_buffers(not teaches, plan.slope_sites):
                loss, logits = self._forward(tile(batch.inputs, count), tiled, run, count)
            return loss, list(logits.chunk(count))
        losses, all_logits = [], []
        for k in range(count):
            own = {site: self._per_pass(site, move)[k] for site, move in moves.items()}
            with self.masks.replay() if self.masks is not None and k == 0 else nullcontext():
                if lean and (plan.beside or k < count - 1):
                    loss, logits = self._forward_twice(k, own)
                else:
                    loss, logits = self._forward_at_rate(k, batch.inputs, own, run)
            losses.append(loss)
            all_logits.append(logits)
        known = [loss for loss in losses if loss is not None]
        return torch.stack(known).mean() if len(known) > 1 else (known[0] if known else None), all_logits

    def _perturbations(self, shared: bool) -> dict[str, Tensor]:
        """Site -> what the passes add to its output, or what stands for it (`_outputs`).

        Args:
            shared: several forwards share one look-up in a table, whose gradient is then made once.
        """
        batch, plan = self.batch, self.plan
        moves: dict[str, Tensor] = dict(self.moves)
        outputs: dict[str, Tensor | None] = {}
        looks_up = not any(is_weights(x) or x == TOP for x in {*moves, *plan.slope_sites})  # no table is moved there
        for site in plan.slope_sites:
            origin = moves[site] if site in moves else self._zeros(site)
            moves[site] = self._leaves[site] = origin.detach().clone().requires_grad_()
            if batch.execution.streaming and not plan.search and looks_up:
                outputs[site] = batch.table_gradient.withhold(site, self._leaves[site])
        if shared and looks_up:
            for site in moves:
                if site not in outputs:
                    outputs[site] = batch.table_gradient.share(site, moves[site])
        found = {site: output for site, output in outputs.items() if output is not None}
        self._outputs = set(found)
        self._weights = {site: moves.pop(site) for site in sorted(moves) if is_weights(site)}
        return {**moves, **found}

    def _per_pass(self, site: str, move: Tensor) -> Tensor:
        """(passes, batch, ...), whether the passes share the move or have one each."""
        shared = move.dim() == len(self.batch.geometry(site).shape)
        return move.expand(self.plan.passes, *move.shape) if shared else move

    def _forward_twice(self, k: int, moves: Mapping[str, Tensor]) -> Pass:
        """Pass `k`, which keeps no activations: they are needed when the backward has left the passes after it."""
        batch, execution = self.batch, self.batch.execution
        batch.tally.reruns += self._share

        def forward(masks: SharedMasks, *arguments: Any) -> Pass:
            with masks.replay():  # torch itself would put back its own random numbers only
                return self._forward_at_rate(*arguments)

        again = forward if execution.running is None else execution.running.replay(forward)
        # The inputs are an argument because torch looks for devices among the arguments.
        rerun = at_weights(self._weights, execution.rerun or execution.run, execution.open_site)
        loss, logits = checkpoint(again, batch.shared_masks(), k, batch.inputs, moves, rerun, use_reentrant=False)
        return loss, logits

    def _forward_at_rate(self, k: int, inputs: Mapping[str, Any], moves: Mapping[str, Tensor], run: Run) -> Pass:
        """Pass `k`, under its own dropout rate."""
        plan = self.plan
        rate = self.rate if plan.rates is None else plan.rates[k]
        with self.batch.at_rate(rate), self.batch.update_buffers(not plan.teaches, plan.slope_sites):
            return self._forward(dict(inputs), moves, run)

    def _forward(self, inputs: dict[str, Any], moves: Mapping[str, Tensor], run: Run, copies: int = 1) -> Pass:
        """One forward over `copies` copies of the batch, in one piece or bucket after bucket."""
        batch = self.batch
        if not batch.split:
            return self._forward_perturbed(inputs, moves, run, copies)
        split = [bucket.tile(copies, len(batch.inputs["input_ids"])) for bucket in batch.split]
        parts, own_inputs = [], [bucket.inputs(inputs) for bucket in split]
        with share_casts(batch.device):
            for part, (bucket, own) in enumerate(zip(split, own_inputs, strict=True)):
                # Gradients are exchanged after the last forward only, so that processes may differ in their buckets.
                with nullcontext() if bucket is split[-1] else batch.execution.no_sync():
                    cut = {site: bucket.move(move) for site, move in moves.items()}
                    parts.append(self._forward_perturbed(own, cut, run, copies, part))
        logits = join([part for _, part in parts], split)
        labels = [count_labels(batch.problem, own) for own in own_inputs if is_labelled(own)]
        return mean_of([loss for loss, _ in parts], labels), logits

    def _forward_perturbed(
        self, inputs: dict[str, Any], moves: Mapping[str, Tensor], run: Run, copies: int, part: int = 0
    ) -> Pass:
        with ExitStack() as contexts:
            if self._below is not None:
                contexts.enter_context(self._below.above(part, copies, moves.get(TOP), self.batch.joins))
            for site in moves.keys() - {TOP}:
                opened = self.batch.execution.open_site(site)
                contexts.enter_context(opened.perturbed(moves[site], site in self._outputs))
            return run(inputs)

    # -- slopes ------------------------------------------------------------------------------------------------------

    def take_slopes(self, alone: bool) -> None:
        """Take the announced slopes, unless the backward of this point's group is going to leave them here.

        Args:
            alone: the group's loss is (a multiple of) the task loss of this point and nothing else.
        """
        if not self.plan.slope_sites or self._slopes:
            return
        if alone and self.batch.execution.streaming:
            self.batch.awaited = list(self._leaves.values())
        else:
            self._slopes = self._take_slopes(keep_graph=True)

    def _take_slopes(self, keep_graph: bool) -> dict[str, Tensor]:
        task, sites = self.task, sorted(self.plan.slope_sites)
        leaves = [self._leaves[site] for site in sites]
        count = self.plan.passes * self._share
        slopes = self.batch.gradient(task, leaves, keep_graph, count, any(map(is_weights, sites)))
        return dict(zip(sites, slopes, strict=True))

    def slope(self, site: str, climb: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Gradient, at this point's perturbation, of the task loss or of `climb(logits)`; its scale means nothing.

        A slope that was announced costs nothing extra, or one traversal; any other costs a pass for itself, which
        differentiates with respect to the perturbation alone.

        Raises:
            RuntimeError: the slope was announced, and no backward left it.
        """
        if climb is None and site in self.plan.slope_sites:
            if site not in self._slopes:
                left = self._leaves[site].grad if site in self._leaves else None
                if left is None:
                    raise RuntimeError(
                        f"there is no slope at {site}: the group of losses before was not back-propagated before the "
                        "next one was asked for, or its task loss does not depend on what this site puts out"
                    )
                self._slopes[site] = left
            return self._slopes[site]
        search = Point(self.batch, self.moves, self.masks, self.rate, Plan(slope_sites=frozenset({site}), search=True))
        loss = search.task if climb is None else climb(search.logits[0])
        leaf = search._leaves[site]
        return self.batch.gradient(loss, [leaf], False, search._share, is_weights(site))[0]

"""A point of a batch: the passes of the model over the batch at one perturbation, kept once made.

Terms never see the model. They ask a point for its passes (`task`, `logits`), for the slope of something at it
(`slope`), and for other points (`at`). Everything about running a model is here, in batch.py, execution.py,
length_buckets.py, dropout.py and the sites.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_rat.passes.batch import Batch, tile
from hf_rat.passes.dropout import SharedMasks
from hf_rat.passes.execution import Pass, Run
from hf_rat.passes.length_buckets import join, share_casts
from hf_rat.passes.part import Part
from hf_rat.passes.problems import count_labels, is_labelled
from hf_rat.passes.sites.weights import at_weights, is_weights


@dataclass(frozen=True)
class Plan:
    """What is going to be asked of the passes at a point, known before they run.

    Args:
        passes: how many.
        rates: a dropout rate for each pass; None leaves that of the point.
        slope_sites: sites at which the slope of the task loss will be asked for.
        share_masks: other points will replay the dropout masks of the first pass.
        also_masks: sites at which passes run with a mask even if the point is not moved there. (A recurrent layer with
            a mask takes other kernels, which round and draw dropout in their own way.)
        further: (part of the batch, how many more passes over it), as the clean ones.
        beside: the passes are such further ones, beside others that keep their activations.
        graph: something is learned from the passes themselves.
        search: the passes give slopes, and nothing is learned from them.
    """

    passes: int = 1
    rates: tuple[float, ...] | None = None
    slope_sites: frozenset[str] = frozenset()
    share_masks: bool = False
    also_masks: frozenset[str] = frozenset()
    further: tuple[tuple[Part, int], ...] = ()
    beside: bool = False
    graph: bool = True
    search: bool = False

    @property
    def teaches(self) -> bool:
        """Whether the passes are back-propagated to the parameters."""
        return self.graph and not self.search


ONE_PASS = Plan()


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
        self.batch.tally.searches += plan.passes
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
        batch.tally.forwards += count
        tiles = count > 1 and plan.rates is None and self.masks is None and not lean
        if tiles and batch.why_one_by_one is None:
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
        looks_up = not any(map(is_weights, {*moves, *plan.slope_sites}))  # elsewhere the table is not moved
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
        batch.tally.reruns += 1

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
            return self._forward_perturbed(inputs, moves, run)
        split = [bucket.tile(copies, len(batch.inputs["input_ids"])) for bucket in batch.split]
        parts, labels = [], []
        with share_casts(batch.device):
            for bucket in split:
                # Gradients are exchanged after the last forward only, so that processes may differ in their buckets.
                with nullcontext() if bucket is split[-1] else batch.execution.no_sync():
                    own = bucket.inputs(inputs)
                    cut = {site: bucket.move(move) for site, move in moves.items()}
                    parts.append(self._forward_perturbed(own, cut, run))
                if is_labelled(own):
                    labels.append(count_labels(batch.problem, own))
        logits = join([part for _, part in parts], split)
        if not labels:
            return None, logits
        # Each loss is a mean over the bucket's labels, and NaN where it has none.
        sums = [torch.where(n > 0, n * loss, 0.0) for n, (loss, _) in zip(labels, parts, strict=True)]  # type: ignore[operator]
        return torch.stack(sums).sum() / torch.stack(labels).sum(), logits

    def _forward_perturbed(self, inputs: dict[str, Any], moves: Mapping[str, Tensor], run: Run) -> Pass:
        with ExitStack() as contexts:
            for site, move in moves.items():
                opened = self.batch.execution.open_site(site)
                contexts.enter_context(opened.perturbed(move, site in self._outputs))
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
        slopes = self.batch.gradient(task, leaves, keep_graph, self.plan.passes, any(map(is_weights, sites)))
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
        return self.batch.gradient(loss, [search._leaves[site]], keep_graph=False, to_weights=is_weights(site))[0]

"""A point of a batch: the passes of the model over the batch at one perturbation, kept once made.

Terms never see the model. They ask a point for its passes (`task`, `logits`), for the slope of something at it
(`slope`), and for other points (`at`). Everything about running a model is here, in batches.py,
buckets.py, dropout.py and the sites.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_rat.passes.batch import Batch, Pass, Run
from hf_rat.passes.dropout import SharedMasks
from hf_rat.passes.length_buckets import casts_shared, joined
from hf_rat.passes.problems import counted, is_labelled


class Point:
    """The passes over a batch at one perturbation, run when first asked for and kept.

    Args:
        batch: the batch.
        moves: site -> perturbation there, (batch, ...), or (passes, batch, ...) where every pass has its own.
        masks: dropout masks that the first pass shares with other points.
        rate: dropout rate of every pass; None leaves the model's own.
        climbed: sites at which the slope of the task loss is going to be asked for.
    """

    def __init__(
        self,
        batch: Batch,
        moves: Mapping[str, Tensor] | None = None,
        masks: SharedMasks | None = None,
        rate: float | None = None,
        climbed: Iterable[str] = (),
    ) -> None:
        self.batch = batch
        self.moves = dict(moves or {})
        self.masks = masks
        self.rate = rate
        self._count = 1
        self._rates: tuple[float, ...] | None = None
        self._climbed = frozenset(climbed)
        self._searching = False
        self._graph = True
        self._leaves: dict[str, Tensor] = {}
        self._replaced: set[str] = set()
        self._slopes: dict[str, Tensor] = {}

    # -- what will be asked ------------------------------------------------------------------------------------------

    def expect(
        self,
        passes: int = 1,
        rates: tuple[float, ...] | None = None,
        climbed: Iterable[str] = (),
        share_masks: bool = False,
        through: Iterable[str] = (),
        graph: bool = True,
    ) -> None:
        """Announce what will be asked of the passes, before they run.

        Args:
            passes: how many.
            rates: a dropout rate for each pass.
            climbed: more sites at which the slope of the task loss will be asked for.
            share_masks: other points will replay the dropout masks of the first pass.
            through: sites that the passes go through, unmoved unless this point is moved there.
            graph: whether anything is going to be learned from the passes themselves.
        """
        self._count = passes
        self._rates = rates
        self._climbed |= frozenset(climbed)
        if share_masks and self.masks is None:
            self.masks = self.batch.shared_masks()
        for site in through:
            place = self.batch.place(site)
            self.moves.setdefault(site, torch.zeros(place.shape, device=place.device))
        self._graph = graph

    def at(self, site: str, move: Tensor, masks: SharedMasks | None = None, climbed: bool = False) -> Point:
        """The point that lies `move` away from here at `site`; `climbed`: the slope there will be asked for."""
        move = move.detach()
        if site in self.moves:
            move = self.moves[site] + move
        return Point(self.batch, {**self.moves, site: move}, masks, self.rate, [site] if climbed else ())

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
        return loss

    @property
    def logits(self) -> list[Tensor]:
        """Logits of each pass."""
        return self._passes[1]

    @cached_property
    def _passes(self) -> tuple[Tensor | None, list[Tensor]]:
        if self._graph:
            apart = self.batch.slopes_apart and self._climbed and not self._searching
            return self._run_after_a_search() if apart else self._run()
        # Not under no_grad: autocast would keep the cast weights without a graph for the passes that need one.
        self.batch.searches += self._count
        with self.batch.no_sync():
            loss, logits = self._run()
        return None if loss is None else loss.detach(), [z.detach() for z in logits]

    def _run_after_a_search(self) -> tuple[Tensor | None, list[Tensor]]:
        """The passes, after passes of the same dropout masks that only give the announced slopes."""
        repeated = self.batch.shared_masks()
        # A copy, so that masks which are yet to be drawn are those of the passes proper.
        search = Point(self.batch, self.moves, copy.copy(self.masks), self.rate, self._climbed)
        search._count, search._rates, search._searching = self._count, self._rates, True
        self.batch.searches += self._count
        with repeated.replayed(), self.batch.no_sync():
            self._slopes = search._traversed(search._run()[0], keep_graph=False)
        with repeated.replayed():
            return self._run()

    def _run(self) -> tuple[Tensor | None, list[Tensor]]:
        batch, count = self.batch, self._count
        moves = dict(self.moves)
        for site in self._climbed:
            place = batch.place(site)
            origin = moves[site] if site in moves else torch.zeros(place.shape, device=place.device)
            moves[site] = self._leaves[site] = origin.detach().clone().requires_grad_()
            looked_up = batch.looked_up(site) if batch.streaming and not self._searching else None
            if looked_up is not None:
                # Withheld: whoever makes the backwards owes it to the table.
                moves[site] = looked_up.detach() + moves[site]
                self._replaced.add(site)
                batch.owing.append((site, self._leaves[site]))
        batch.forwards += count
        learned = self._graph and not self._searching
        lean = learned and batch.rerun is not None and count > 1
        if lean or (learned and batch.split):
            # One look-up: the table's gradient, as large as the table, is made once and not for each pass or bucket.
            for site in moves.keys() - self._replaced:
                if (shared := batch.looked_up(site)) is not None:
                    moves[site] = shared + moves[site]
                    self._replaced.add(site)
        tiles = count > 1 and self._rates is None and self.masks is None and not lean
        if tiles and batch.apart_because(batch.inputs) is None:
            # One doubled batch: fewer, larger kernels; its halves draw random numbers of their own.
            tiled = {site: self._per_pass(site, move).flatten(0, 1) for site, move in moves.items()}
            with batch.updating(self._searching):
                loss, logits = self._forward(batch.tiled(count), tiled, batch.run, count)
            return loss, list(logits.chunk(count))
        losses, all_logits = [], []
        for k in range(count):
            own = {site: self._per_pass(site, move)[k] for site, move in moves.items()}
            with self.masks.replayed() if self.masks is not None and k == 0 else nullcontext():
                if lean and k < count - 1:
                    # Its logits are needed now, its activations when the backward has left the passes after it.
                    # The inputs are an argument because torch looks for devices among the arguments.
                    batch.reruns += 1
                    again = self._drawn_again
                    if batch.running is not None:
                        again = batch.running.replaying(again)
                    given = (batch.shared_masks(), k, batch.inputs, own, batch.rerun)
                    loss, logits = checkpoint(again, *given, use_reentrant=False)
                else:
                    loss, logits = self._at_rate(k, batch.inputs, own, batch.run)
            losses.append(loss)
            all_logits.append(logits)
        known = [loss for loss in losses if loss is not None]
        return torch.stack(known).mean() if len(known) > 1 else (known[0] if known else None), all_logits

    def _per_pass(self, site: str, move: Tensor) -> Tensor:
        """(passes, batch, ...), whether the passes share the move or have one each."""
        shared = move.dim() == len(self.batch.place(site).shape)
        return move.expand(self._count, *move.shape) if shared else move

    def _drawn_again(self, masks: SharedMasks, *pass_: Any) -> Pass:
        """A pass that is run twice; torch itself would put back its own random numbers only."""
        with masks.replayed():
            return self._at_rate(*pass_)

    def _at_rate(self, k: int, inputs: Mapping[str, Any], moves: Mapping[str, Tensor], run: Run) -> Pass:
        """Pass `k`, under its own dropout rate."""
        rate = self.rate if self._rates is None else self._rates[k]
        with self.batch.at_rate(rate), self.batch.updating(self._searching):
            return self._forward(dict(inputs), moves, run)

    def _forward(self, inputs: dict[str, Any], moves: Mapping[str, Tensor], run: Run, copies: int = 1) -> Pass:
        """One forward over `copies` copies of the batch, in one piece or bucket after bucket."""
        batch = self.batch
        if not batch.split:
            return self._moved(inputs, moves, run)
        split = [bucket.tiled(copies, batch.size) for bucket in batch.split]
        parts, labels = [], []
        with casts_shared(batch.device):
            for bucket in split:
                # Gradients are exchanged after the last forward only, so that processes may differ in their buckets.
                with nullcontext() if bucket is split[-1] else batch.no_sync():
                    own = bucket.inputs(inputs)
                    parts.append(self._moved(own, {site: bucket.move(move) for site, move in moves.items()}, run))
                if is_labelled(own):
                    labels.append(counted(batch.problem, own))
        logits = joined([part for _, part in parts], split)
        if not labels:
            return None, logits
        # Each loss is a mean over the bucket's labels, and NaN where it has none.
        sums = [torch.where(n > 0, n * loss, 0.0) for n, (loss, _) in zip(labels, parts, strict=True)]  # type: ignore[operator]
        return torch.stack(sums).sum() / torch.stack(labels).sum(), logits

    def _moved(self, inputs: dict[str, Any], moves: Mapping[str, Tensor], run: Run) -> Pass:
        with ExitStack() as contexts:
            for site, move in moves.items():
                contexts.enter_context(self.batch.open_site(site).entered(move, site in self._replaced))
            return run(inputs)

    # -- slopes ------------------------------------------------------------------------------------------------------

    def settle(self, alone: bool) -> None:
        """Take the announced slopes, unless the backward of this point's group is going to leave them here.

        Args:
            alone: the group's loss is (a multiple of) the task loss of this point and nothing else.
        """
        if self._climbed and not self._slopes and not (alone and self.batch.streaming):
            self._slopes = self._traversed(self.task, keep_graph=True)

    def _traversed(self, loss: Tensor | None, keep_graph: bool) -> dict[str, Tensor]:
        sites = sorted(self._climbed)
        assert loss is not None
        slopes = self.batch.gradient(loss, [self._leaves[site] for site in sites], keep_graph, self._count)
        return dict(zip(sites, slopes, strict=True))

    def slope(self, site: str, climb: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Gradient, at this point's perturbation, of the task loss or of `climb(logits)`; its scale means nothing.

        A slope that was announced costs nothing extra, or one traversal; any other costs a pass for itself, which
        differentiates with respect to the perturbation alone.
        """
        if climb is None and site in self._climbed:
            if site not in self._slopes:
                ridden = self._leaves[site].grad
                # No gradient: the group was not finite on some process and was never back-propagated.
                self._slopes[site] = torch.zeros_like(self._leaves[site]) if ridden is None else ridden
            return self._slopes[site]
        with self.batch.no_sync():
            search = Point(self.batch, self.moves, self.masks, self.rate, [site])
            search._searching = True
            self.batch.searches += 1
            loss = search.task if climb is None else climb(search.logits[0])
            return self.batch.gradient(loss, [search._leaves[site]], keep_graph=False)[0]

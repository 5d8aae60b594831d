"""A regularizer at work on a model: the only place that runs backwards.

`Regularization` opens the sites of a model, turns batches into groups of named losses (regularizers/terms.py) and
back-propagates each group as soon as it is final: one group's graphs at a time. Trainers and other loops use it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_rat.engine.adaptive_epsilon import AdaptiveEpsilon
from hf_rat.engine.averaged_model import proximal_average
from hf_rat.engine.bucketing_policy import overhead, why_not_bucketed
from hf_rat.engine.chosen_examples import ChosenExamples
from hf_rat.engine.cost import Cost, rehearse
from hf_rat.engine.engine import Engine
from hf_rat.engine.kept_outputs import KeptOutputs
from hf_rat.engine.nonfinite import NonfiniteGuard
from hf_rat.engine.open_sites import OpenSites
from hf_rat.engine.probes import PassProbe, RateProbe
from hf_rat.engine.reading import call
from hf_rat.engine.requirements import require, require_memory
from hf_rat.engine.schedule import Schedule
from hf_rat.engine.top import cut_of
from hf_rat.engine.weight_memory import WeightMemory
from hf_rat.engine.weighting import Weighting, weigh
from hf_rat.engine.zero_gains import ZeroGains
from hf_rat.passes.batch import Batch
from hf_rat.passes.execution import Execution, Pass
from hf_rat.passes.length_buckets import Bucket, buckets
from hf_rat.passes.running_buffers import RunningBuffers
from hf_rat.regularizers.expressions import as_term
from hf_rat.regularizers.terms import FULL_STRENGTH, Term, accumulate, is_plain
from hf_rat.regularizers.unlabeled import Unlabeled, groups_of_both


class Regularization:
    """A regularizer opened on a model.

    Args:
        regularizer: the term, for instance `rat(epsilon=0.1) + 0.5 * vat()`, or its text.
        model: the model that is trained, as the loop calls it; a compiled one before its first forward.
        accelerator: makes backwards (loss scaling) and says when gradients are synchronised; None for a bare loop.
        run: (model, inputs) -> (mean task loss, or None without labels; logits). The default calls the model.
        single_backward: one backward per micro-batch, with the same gradients; None: where the engine must.
        length_buckets: "auto" splits batches by length where that is faster, and exact if the task loss is a mean over
            examples; "off" leaves them whole. None is "auto", but "off" with a `run`, whose loss may be another.
        memory: "fast" runs the dropout passes at a point as one batch where the first batch shows no shared random
            numbers; "lean" one by one, and runs all but one of them again in the backward, under the same masks.
        keep: outputs of the first (clean) pass that `kept` has, detached: a "state". Passes then run one by one.
        problem: the kind of task, one of regularizers/problems.py's; None finds it by the model, its labels and loss.
        optimizer: the loop's, for `momentum_sam(momentum="optimizer")`.
        total_steps: optimizer steps of the whole run, for `begin=0.3` and `below=0.3`; needed for nothing else.
        averages: whether the loop takes the average that `ema` or `swa` asks for; else it is told of it.

    Raises:
        ValueError: the model cannot carry the regularizer; a schedule asks for total_steps, or is never on within.
    """

    def __init__(
        self,
        regularizer: Term | str,
        model: nn.Module,
        *,
        accelerator: Accelerator | None = None,
        run: Callable[[nn.Module, dict[str, Any]], Pass] | None = None,
        single_backward: bool | None = None,
        length_buckets: str | None = None,
        memory: str = "fast",
        keep: Sequence[str] = (),
        problem: str | None = None,
        optimizer: Any = None,
        total_steps: int | None = None,
        averages: bool = False,
    ) -> None:
        self.regularizer = regularizer = as_term(regularizer)
        self.schedule, self.accelerator = Schedule(regularizer, total_steps), accelerator
        self.engine, self.is_plain = Engine(model, accelerator), is_plain(regularizer)  # plain at every step
        self.unwrapped, self.single_backward = self.engine.unwrapped, self.engine.has_single_backward(single_backward)
        self._running, self._gains = RunningBuffers(self.unwrapped), ZeroGains(regularizer, self.unwrapped)
        self.run, self.nonfinite = run or partial(call, regularizer), NonfiniteGuard(self.engine.everywhere)
        self.weighting = Weighting(self.engine, self.run, regularizer, problem)
        self._require_rates = RateProbe(regularizer, self.engine, self.run, self._running)
        self._probe = PassProbe(self.engine, partial(self.weighting.run, tells=False))
        require(regularizer, self.unwrapped, model, averages)
        require_memory(memory, self.unwrapped, accelerator)
        self._chosen = ChosenExamples(regularizer, self.engine, partial(self.weighting.run, tells=False))
        self._cut = cut_of(regularizer, model, self.engine, accelerator)
        self.teacher = proximal_average(regularizer, self.unwrapped)
        self.adaptive, self.keeper = AdaptiveEpsilon(regularizer, self.engine), KeptOutputs(keep, self.unwrapped)
        self.weights = WeightMemory(regularizer, self.engine, optimizer)
        self._sites = self.weights.open(OpenSites(regularizer, self.unwrapped))
        asked = length_buckets or ("auto" if run is None else "off")
        because = why_not_bucketed(asked, self.is_plain, self._sites.names, self.unwrapped, accelerator)
        self.why_not_bucketed = because or ("outputs are kept" if keep else None)
        self.kept, self._bucket_overhead = self.keeper.values, overhead(self.unwrapped)
        execution = self.engine.execution(
            self.weighting.run,
            open_site=self._sites.open,
            streaming=not self.single_backward,
            lean=memory == "lean",
            teacher=None if self.teacher is None else self.teacher.logits,
            anchor=self.weights.anchor and self.weights.anchor.logits,
            share_of=self.adaptive.share_of,
            frames=self.weighting.frames,
            why_one_by_one=self._probe.why_one_by_one,
            require_repeatable=self._probe.require_repeatable,
            split=self._split,
            permute=self._chosen.permute,
            running=self._running,
        )
        self._stream = self.keeper.watch(execution)
        self._whole = replace(self._stream, streaming=False)  # all graphs are kept for one backward

    def begin_step(self, batches: Iterable[Mapping[str, Any]], *, step: int = 0, num_labels: Any = None) -> None:
        """Look at all micro-batches of a step, as `backward` will get them; `over="step"` needs it first."""
        looks = ((self._batch(x, step, self._stream), self.weighting.weight(x, num_labels)) for x in batches)
        self.weights.look_ahead(self.schedule.now, looks, step)

    def backward(
        self,
        inputs: Mapping[str, Any],
        *,
        unlabeled: Mapping[str, Any] | None = None,
        step: int = 0,
        accumulation: int = 1,
        num_labels: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Back-propagate one micro-batch. If a gradient is not finite, all are taken away: the step changes nothing.

        Without an accelerator that says where a step ends, a step goes on from there with its later micro-batches, and
        under a loss scale the scaler decides. A loop that makes its own backward calls `nonfinite.drop_gradients`.

        Args:
            inputs: keyword arguments of the model, labels included.
            unlabeled: a second batch, without labels, of any size. What needs no labels (divergences) is asked of it
                too, with the same weights, and added; a ValueError where nothing does.
            step: optimizer steps made so far; recipes with a schedule read it.
            accumulation: micro-batches in this optimizer step; gradients (not the returned losses) are divided by it.
            num_labels: `count_labels` of the step on all processes, in sum: labels, not micro-batches, count alike.

        Returns: detached scalars, named task, adversarial_task, consistency and so on; they sum to the loss.
        """
        loss, named = self.backward_all_but_last(
            inputs, unlabeled=unlabeled, step=step, accumulation=accumulation, num_labels=num_labels
        )
        self.engine.backward(loss / accumulation)
        if self.engine.leaves_gradients:
            self.nonfinite.drop_gradients(self.unwrapped, step)
        return named

    def losses(
        self,
        inputs: Mapping[str, Any],
        *,
        unlabeled: Mapping[str, Any] | None = None,
        step: int = 0,
        accumulation: int = 1,
        num_labels: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """The named losses with their graphs, weighted as in `backward`, for a loop that makes its own backward."""
        named: dict[str, Tensor] = {}
        weight = self.weighting.weight(inputs, num_labels, accumulation)
        for last, losses, asked in self._groups(self._batch(inputs, step, self._whole), unlabeled, weight):
            accumulate(named, losses)
            if last and not named:
                named["nothing_finite"] = self.engine.nothing(asked.values())
        self._gains.see(named, accumulation)
        self.schedule.see(named, step)
        return named

    def backward_all_but_last(
        self,
        inputs: Mapping[str, Any],
        *,
        unlabeled: Mapping[str, Any] | None = None,
        step: int = 0,
        accumulation: int = 1,
        num_labels: Tensor | int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Back-propagate every group but the last, whose loss (plus the others, detached) is returned undivided.

        Returns: the scalar whose backward completes the micro-batch, and the detached named losses that sum to it.
        """
        named: dict[str, Tensor] = {}
        done = pending = None
        owed: Tensor | float = 0.0
        batch = self._batch(inputs, step, self._stream)
        weight = self.weighting.weight(inputs, num_labels, accumulation)
        for last, losses, asked in self._groups(batch, unlabeled, weight):
            accumulate(named, {name: value.detach() for name, value in losses.items()})
            if not losses:
                if last and pending is None:  # all processes complete the gradient exchange with nothing
                    pending = self.engine.nothing(asked.values())
                continue
            total = torch.stack(list(losses.values())).sum() if len(losses) > 1 else next(iter(losses.values()))
            if last or self.single_backward:
                pending = total if pending is None else pending + total
            else:
                with self.engine.no_sync():
                    self.engine.backward(total / accumulation)
                done = total.detach() if done is None else done + total.detach()
                # Before the next group runs: autograd goes through what is newest first, when activations are gone.
                if batch.table_gradient.is_owed:
                    owed = owed + batch.table_gradient.give_back(self.engine.undo(accumulation, batch.device))
        owed = owed + sum(below.give_back(self.engine.undo(accumulation, batch.device)) for below in batch.crossed)
        assert pending is not None
        self._gains.see(named, accumulation)
        self.schedule.see(named, step)
        return pending + owed + (0.0 if done is None else done), named

    def count_labels(self, inputs: Mapping[str, Any]) -> Tensor:
        """How many labels a micro-batch has, those of -100 left out; an integer scalar. Their sum is `num_labels`."""
        return self.weighting.count_labels(inputs)

    def cost(self, step: int | None = None, unlabeled: bool = False) -> Cost:
        """What one step costs, found by rehearsing the regularizer on a tiny model.

        Args:
            step: the optimizer step; None asks for the full price, of a step in which every schedule is on.
            unlabeled: ask for the passes over an unlabeled batch instead of those over the labelled one.
        """
        term = Unlabeled(self.schedule.term) if unlabeled else self.schedule.term
        return rehearse(term, FULL_STRENGTH if step is None else step, self._stream, getattr(self._cut, "share", None))

    def after_step(self, changed: bool = True) -> None:
        """Call after each optimizer step: moves averages in terms and epsilon, if it `changed` the weights (fp16)."""
        self.adaptive.update(finite=self.nonfinite.end_step() and changed)
        self.weights.after_step(changed)
        self.schedule.end_step(self.engine)
        if changed and self.teacher is not None:
            self.teacher.update(self.unwrapped)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep beside the teacher's weights: plain numbers and strings."""
        return {
            "regularizer": repr(self.regularizer),
            "embedding_norms": self._sites.embedding_norms,
            "nonfinite_steps": self.nonfinite.steps,
            "weights": self.weights.state_dict(),
            "adaptive_epsilon": self.adaptive.state_dict(),
            **self.schedule.state_dict(),
            "chosen_examples": self._chosen.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`: epsilon keeps the unit that the run began with."""
        self._sites.load_embedding_norms(state.get("embedding_norms", {}))
        self.nonfinite.steps = int(state.get("nonfinite_steps", 0))
        self.weights.load_state_dict(state.get("weights", {}))
        self.adaptive.load_state_dict(state.get("adaptive_epsilon", {}))
        self._chosen.load_state_dict(state.get("chosen_examples", {}))
        self.schedule.load_state_dict(state)

    def close(self) -> None:
        """Take the hooks off the model."""
        self._sites.close()
        self.keeper.close()

    def _groups(
        self, batch: Batch, unlabeled: Mapping[str, Any] | None = None, weight: Tensor | None = None
    ) -> Iterator[tuple[bool, dict[str, Tensor], dict[str, Tensor]]]:
        """(whether it is the last, its finite losses, all of them) of each group; the last one exchanges gradients."""
        self._gains.begin()
        self.weights.begin(batch)
        self._require_rates(batch.inputs)
        self._chosen.require(batch.inputs, batch.find_problem)
        stream, second, labelled, count = groups_of_both(self.schedule.now, batch, unlabeled)
        for index in range(count):
            last = index == count - 1
            batch.joins = second.joins = last or not batch.execution.streaming
            # DDP prepares its gradient exchange in the forward, so the context must hold there too.
            with nullcontext() if last else self.engine.no_sync():
                losses = weigh(next(stream)(), weight if index < labelled else None)
            finite = losses if self.is_plain else self.nonfinite.drop_losses(losses, batch.step)
            if losses and not finite:
                batch.skip_group()
            yield last, finite, losses
        self.adaptive.add(batch.rises, weight, batch.step)

    def _batch(self, inputs: Mapping[str, Any], step: int, execution: Execution) -> Batch:
        self.keeper.begin()
        self.weighting.problem(inputs := dict(inputs))  # which may run the model
        batch = Batch(inputs, partial(self.weighting.problem, inputs, ask=False), self._gains.watch(execution), step)
        batch.cut = None if is_plain(self.schedule.now, step) else self._cut
        self._sites.probe(batch.geometry)
        return batch

    def _split(self, inputs: Mapping[str, Any]) -> list[Bucket]:
        if not self.why_not_bucketed and (split := buckets(inputs, self._bucket_overhead)):
            self.why_not_bucketed = self._probe.why_not_bucketed(inputs)
        return [] if self.why_not_bucketed else split

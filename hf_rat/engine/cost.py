"""What a regularizer costs, found by running it once on the smallest model there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat.passes.batch import Batch, Tally
from hf_rat.passes.cut import Cut
from hf_rat.passes.execution import Execution
from hf_rat.passes.layers import Place
from hf_rat.passes.sites import EMBEDDINGS, INPUT_OF, LOGITS_INPUT, MASKS, SITES, Site, is_weights, open_site
from hf_rat.regularizers.ahead import look_ahead, sites_ahead
from hf_rat.regularizers.balls import L2
from hf_rat.regularizers.terms import Adversarial, Term, count_groups, groups, is_plain
from hf_rat.regularizers.top import top_of
from hf_rat.regularizers.weight_balls import Ellipsoid, PerTensor
from hf_rat.regularizers.weight_perturbations import Mixed, Momentum
from hf_rat.regularizers.weight_terms import Distance

# Shares of a plain step of MiniLM, 16 x 64 tokens in fp32 on one core (benchmarks/step_cost.py).
FORWARD, BACKWARD, SLOPE, OPTIMIZER = 0.375, 0.56, 0.31, 0.065
AT_WEIGHTS = {L2: 0.45, Ellipsoid: 1.0, PerTensor: 1.15, Momentum: 1.0, Mixed: 0.63, Distance: 0.2}
"""What work over the weights themselves costs beside the passes, by what asks for it; shares of the same step."""


@dataclass(frozen=True)
class Cost:
    """Passes over the batch in one step, of which a part of it, or the top of the model, counts as its share.

    Plain is one forward and one backward.

    Attributes:
        forwards: forward passes, those of a search included.
        backwards: passes that are back-propagated to the parameters.
        slopes: further traversals, for a slope with respect to the perturbation only; one with respect to the weights
            goes as far as a backward, and is counted as one.
        groups: backwards that are made one after the other.
        graphs: passes whose activations are in memory at a time, at most.
        at_weights: time of work over the weights beside the passes, in plain steps.
    """

    forwards: float
    backwards: float
    slopes: float
    groups: int
    graphs: float = 1
    at_weights: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Of both, one after the other."""
        return Cost(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.slopes + other.slopes,
            self.groups + other.groups,
            max(self.graphs, other.graphs),
            self.at_weights + other.at_weights,
        )

    @property
    def time(self) -> float:
        """Expected multiple of a plain step's time, on an encoder in fp32, its optimizer step included."""
        work = FORWARD * self.forwards + BACKWARD * self.backwards + SLOPE * self.slopes
        return (work + OPTIMIZER) / (FORWARD + BACKWARD + OPTIMIZER) + self.at_weights

    def __str__(self) -> str:
        text = f"{self.forwards:.3g} forward and {self.backwards:.3g} backward passes"
        return text + (f" and {self.slopes:.3g} for slopes" if self.slopes else "")

    def price(self, time: float | None = None) -> str:
        """Time and memory as multiples of plain training's.

        Args:
            time: the mean over a run in which steps have different costs; None: all steps have this one.
        """
        over = "" if time is None else " over the run"
        time = self.time if time is None else time
        return f"about {time:.1f} times the time{over} and {self.graphs:.2g} times the activations of plain training"


def rehearse(regularizer: Term, step: int, like: Execution | None = None, share: float | None = None) -> Cost:
    """Run one step of a regularizer on a tiny model and count. Leaves the random number generators as they were.

    Args:
        regularizer: what is rehearsed.
        step: the optimizer step.
        like: how passes run: whether groups wait for one backward of them all, passes are run again instead of kept,
            and slopes are taken in passes of their own. None: none of these.
        share: how much of the layers lies above the cut, where the regularizer has one; None: what it says, and all
            of them where it names a layer.

    Raises:
        RuntimeError: the regularizer has another number of groups than it says.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        stage = _Stage()
        execution = Execution(
            run=stage.run,
            open_site=stage.site,
            streaming=like is None or like.streaming,
            separate_slope_pass=like is not None and like.separate_slope_pass,
            rerun=None if like is None or like.rerun is None else stage.run,
            teacher=lambda inputs: stage.run(inputs)[1].detach(),
            anchor=lambda inputs: stage.run(inputs)[1].detach(),
        )
        top = top_of(regularizer)
        cut = None
        if top is not None and not is_plain(regularizer, step):
            share = share or (top if isinstance(top, float) else 1.0)
            cut = Cut(stage, Place("recurrent", stage.recurrent, 0, 1, share), "top")
        inputs = {"input_ids": torch.tensor([[0, 1]]), "labels": torch.tensor([0])}
        return _rehearse(regularizer, Batch(inputs, lambda: "single_label_classification", execution, step, cut=cut))


def _rehearse(regularizer: Term, batch: Batch) -> Cost:
    streaming = batch.execution.streaming
    backwards, count = 0.0, 0
    if sites_ahead(regularizer, batch.step):
        batch.ahead = look_ahead(regularizer, batch)
    graphs: list[float] = []
    batch.joins = not streaming
    for group in groups(regularizer, batch):
        before = _tally(batch)
        losses = group()
        after = _tally(batch)
        passes = after.forwards - after.searches - (before.forwards - before.searches)
        backwards += passes
        # What is below a cut is there until the last group.
        below = 1 - batch.cut.share if batch.cut is not None and graphs else 0
        graphs.append(below + passes - (after.reruns - before.reruns))
        count += 1
        if losses and streaming:
            torch.stack(list(losses.values())).sum().backward()
    if count != (said := count_groups(regularizer, batch.step)):
        raise RuntimeError(
            f"{regularizer!r} has {count} groups of losses, and its count_elsewhere or visits say {said}"
        )
    # A regularizer of unlabeled batches that begins later has no group yet.
    tally = _tally(batch)
    alive = max(graphs, default=0) if streaming else backwards - tally.reruns
    slopes = tally.slopes - tally.weight_slopes
    backwards += tally.weight_slopes
    return Cost(tally.forwards + tally.reruns, backwards, slopes, count, alive, _at_weights(regularizer, batch.step))


def _at_weights(term: Term, step: int) -> float:
    """Time of work over the weights beside the passes, at an optimizer step."""
    total = 0.0
    for weight, part in term.parts(step):
        at = part.perturb
        if weight > 0 and at is not None and is_weights(at.site or ""):
            total += AT_WEIGHTS.get(type(at), AT_WEIGHTS.get(type(getattr(at, "ball", None)), 0.0))
        if weight > 0 and isinstance(part, Distance):
            total += AT_WEIGHTS[Distance]
        if weight > 0 and isinstance(part, Adversarial):
            total += _at_weights(part.term, step)
    return total


def _tally(batch: Batch) -> Tally:
    """Passes over a batch, those over parts of it counted as such."""
    counts = vars(batch.tally).copy()
    for part, chosen in batch.parts.items():
        for name, number in vars(chosen.tally).items():
            counts[name] += part.share * number
    return Tally(**counts)


class _Stage(nn.Module):
    """The smallest model with a word embedding, a recurrent layer's interface and a layer that makes logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.eye(2), freeze=False)
        self.recurrent = _Masked()
        self.output = nn.Linear(2, 2)
        self._sites: dict[str, Site] = {}

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def site(self, name: str) -> Site:
        if name not in self._sites and is_weights(name):
            opened: Any = open_site(name.partition(":")[0], self)
            opened.centre = opened.values()
            self._sites[name] = opened
        if name not in self._sites:
            alike = LOGITS_INPUT if name.startswith(INPUT_OF) else EMBEDDINGS
            self._sites[name] = SITES[name if name in MASKS else alike](self)
        return self._sites[name]

    def run(self, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
        outputs = self(**inputs)
        return outputs.loss, outputs.logits

    def forward(self, input_ids: Tensor, labels: Tensor) -> SequenceClassifierOutput:
        logits = self.output(self.recurrent(self.embedding(input_ids)).mean(1))
        return SequenceClassifierOutput(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


class _Masked(nn.Module):
    """Stands for a recurrent layer: it takes a mask, and has no recursion."""

    hidden_size = 2

    def forward(self, x: Tensor, recurrent_mask: Tensor | None = None) -> Tensor:
        return x if recurrent_mask is None else x * recurrent_mask.unsqueeze(1)

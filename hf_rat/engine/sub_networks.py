"""The sub-networks of a trained classifier: what it answers with units switched off, and which are worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.batch import Batch
from hf_rat.passes.execution import Execution
from hf_rat.passes.outputs import logits_of
from hf_rat.passes.plan import Plan
from hf_rat.passes.point import Point
from hf_rat.passes.sites import RECURRENT, open_site
from hf_rat.regularizers.balls import Hamming
from hf_rat.regularizers.divergences import mean_divergence
from hf_rat.regularizers.perturbations import Flip


class SubNetworks:
    """A classifier in evaluation, of which every 0/1 mask of its units is a sub-network.

    Masks are those of `adversarial_dropout`: what is on is scaled by units / (units that are on). A move is the mask
    less one, -1 where a unit is off. Close it when done: it hooks the model.

    Args:
        model: is set to evaluation. It has no random numbers there.
        batches: the examples that it is asked about, with their "labels": int64 (batch,) classes, or of a regression
            floats.
        site: where the units are: "recurrent state" (default) or "logits input".
    """

    def __init__(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]], site: str = RECURRENT) -> None:
        self._model, self.labels = model.eval(), torch.cat([batch["labels"] for batch in batches])
        self._batches = [{name: x for name, x in batch.items() if name != "labels"} for batch in batches]
        self._sizes = [len(batch["labels"]) for batch in batches]
        self._name, self._site = site, open_site(site, model)
        self.units = int(self._site.geometry(self._batches[0]).shape[-1])

    def close(self) -> None:
        """Take the hook off the model."""
        self._site.close()

    def logits(self, move: Tensor | None = None) -> Tensor:
        """What a sub-network answers: float32 (examples, classes).

        Args:
            move: (units,), one sub-network for all examples, or (examples, units). Default: all units are on.
        """
        moves = torch.zeros(self.units) if move is None else move
        each = moves.to(self.labels.device).expand(len(self.labels), self.units).split(self._sizes)
        found = []
        for inputs, own in zip(self._batches, each, strict=True):
            with torch.no_grad(), self._site.perturbed(own):
                found.append(self._run(inputs)[1].float())
        return torch.cat(found)

    def accuracy(self, logits: Tensor) -> float:
        """The share of examples that are answered rightly, 0 to 1.

        Args:
            logits: (examples, classes).
        """
        return float((logits.argmax(-1) == self.labels).double().mean())

    def random_move(self, rate: float) -> Tensor:
        """A sub-network, (units,), in which each unit is off with this probability."""
        return -torch.empty(self.units).bernoulli_(rate)

    def worst_moves(self, rate: float, steps: int = 1, divergence: str = "reverse_kl") -> Tensor:
        """For each example, the sub-network that `adversarial_dropout(start_mask="one_drop")` finds.

        Args:
            rate: at most floor(rate * units) units are off.
            steps: of the search.
            divergence: from the answer of the whole network, which it raises.

        Returns:
            (examples, units) in {-1, 0}.
        """
        flip = Flip(Hamming(rate), "one_drop", steps, self._name)
        execution = Execution(run=self._run, open_site=lambda name: self._site)
        problem = "regression" if self.labels.is_floating_point() else "single_label_classification"
        found = []
        for inputs in self._batches:
            batch = Batch(inputs, lambda: problem, execution)
            here = Point(batch, plan=Plan(also_masks=frozenset({self._name}), graph=False))
            climb = partial(mean_divergence, batch, divergence, here.logits[0])
            ((_, there),) = flip(here, climb)
            found.append(there.moves[self._name])
        return torch.cat(found)

    def _run(self, inputs: dict[str, Any]) -> tuple[None, Tensor]:
        return None, logits_of(self._model(**inputs), type(self._model).__name__)


def in_batches(inputs: Mapping[str, Tensor], labels: Tensor, size: int = 500) -> list[dict[str, Tensor]]:
    """Examples as `SubNetworks` takes them.

    Args:
        inputs: name -> (examples, ...).
        labels: (examples,).
        size: of a batch.
    """
    everything = {**inputs, "labels": labels}
    return [{name: x[start : start + size] for name, x in everything.items()} for start in range(0, len(labels), size)]

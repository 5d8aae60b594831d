"""The sub-networks of a trained classifier: what it answers with units switched off, and which are worst."""

from __future__ import annotations

from collections.abc import Iterator
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
        inputs: name -> tensor, the examples that it is asked about; without labels.
        labels: int64 (examples,), their classes.
        site: where the units are: "recurrent state" (default) or "logits input".
        batch_size: examples at a time.
    """

    def __init__(
        self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor, site: str = RECURRENT, batch_size: int = 500
    ) -> None:
        self._model, self._inputs, self.labels, self._batch_size = model.eval(), inputs, labels, batch_size
        self._name, self._site = site, open_site(site, model)
        self.units = int(self._site.geometry(next(self._parts(labels))[0]).shape[-1])

    def close(self) -> None:
        """Take the hook off the model."""
        self._site.close()

    def logits(self, move: Tensor | None = None) -> Tensor:
        """What a sub-network answers: float32 (examples, classes).

        Args:
            move: (units,), one sub-network for all examples, or (examples, units). Default: all units are on.
        """
        moves = torch.zeros(self.units) if move is None else move
        found = []
        for inputs, own in self._parts(moves.expand(len(self.labels), self.units)):
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
        found = []
        for inputs, _ in self._parts(self.labels):
            batch = Batch(inputs, lambda: "single_label_classification", execution)
            here = Point(batch, plan=Plan(also_masks=frozenset({self._name}), graph=False))
            climb = partial(mean_divergence, batch, divergence, here.logits[0])
            ((_, there),) = flip(here, climb)
            found.append(there.moves[self._name])
        return torch.cat(found)

    def _parts(self, beside: Tensor) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """The inputs and what lies beside them, some examples at a time."""
        for start in range(0, len(self.labels), self._batch_size):
            part = slice(start, start + self._batch_size)
            yield {name: x[part] for name, x in self._inputs.items()}, beside[part]

    def _run(self, inputs: dict[str, Any]) -> tuple[None, Tensor]:
        return None, logits_of(self._model(**inputs), type(self._model).__name__)

"""What dropout masks do to a trained network: the study of adversarial dropout for recurrent nets (Park et al. 2019).

- How right sub-networks are: random ones; those that are worst for one of the examples; and each example's own worst.
- The mean worst mask of each checkpoint of a training.
- The terms of fraternal dropout, expectation-linear dropout and adversarial dropout at the network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hf_rat.data.whole_files import write_json
from hf_rat.engine.mask_terms import three_terms
from hf_rat.engine.sub_networks import SubNetworks

FILE = "masks.json"
_AT_ONCE = 25  # sub-networks between two writes


@dataclass(frozen=True)
class Settings:
    """What is sampled.

    Args:
        network: the folder of the network that is studied.
        images: examples that it is asked about.
        masks: random sub-networks, and sub-networks that are worst for one example; an even number.
        draws: times that each example's own worst sub-network is sought, from other random starts.
        rate: share of units that are off, in random masks on average, in adversarial ones at most.
        steps: of the search of adversarial masks.
        seed: of all random numbers.
    """

    network: str
    images: int
    masks: int = 500
    draws: int = 50
    rate: float = 0.03
    steps: int = 2
    seed: int = 0


class Study:
    """A study in its folder, which goes on where it was interrupted.

    Args:
        settings: what is sampled.
        folder: of `masks.json`.

    Raises:
        ValueError: the folder has a study with other settings.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.path = settings, folder / FILE
        self.found: dict[str, Any] = {"settings": asdict(settings), "mean_masks": {}}
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            try:
                self.found = json.loads(self.path.read_text(encoding="utf-8"))
                same = self.found["settings"] == asdict(settings)
            except (ValueError, KeyError, TypeError):
                same = False
            if not same:
                raise ValueError(f"--output_dir {folder}: {FILE} there is of another study; give another folder")

    def study_network(self, network: SubNetworks) -> None:
        """The accuracies of sub-networks and the three terms."""
        settings = self.settings
        whole = network.logits()
        self.found["accuracy"] = network.accuracy(whole)
        if "terms" not in self.found:
            answers = list(self._random(network))
            self.found["random"] = [network.accuracy(answer) for answer in answers]
            with self._random_numbers(settings.masks):
                self.found["terms"] = three_terms(
                    network, whole, answers, self._largest(network), settings.rate, settings.steps
                )
            self._write()
        if "adversarial" not in self.found or len(self.found["adversarial"]) < settings.masks:
            with self._random_numbers(settings.masks + 1):
                moves = network.worst_moves(settings.rate, settings.steps)[: settings.masks]
            self._extend("adversarial", settings.masks, lambda n: network.accuracy(network.logits(moves[n])))

        def own(index: int) -> float:
            with self._random_numbers(settings.masks + 2 + index):
                return network.accuracy(network.logits(network.worst_moves(settings.rate, settings.steps)))

        self._extend("own", settings.draws, own)

    def add_mean_mask(self, name: str, open_network: Callable[[], SubNetworks]) -> None:
        """The mean over the examples of their worst masks, (units,) from 0 to 1, at one checkpoint."""
        if name in self.found["mean_masks"]:
            return
        network = open_network()
        with self._random_numbers(self.settings.masks + 1):
            moves = network.worst_moves(self.settings.rate, self.settings.steps)
        network.close()
        self.found["mean_masks"][name] = [round(value, 6) for value in (1.0 + moves).mean(0).tolist()]
        self._write()

    def _random(self, network: SubNetworks) -> Iterator[Tensor]:
        """The logits of random sub-networks, (examples, classes) each."""
        for index in _shown(range(self.settings.masks), "random sub-networks"):
            with self._random_numbers(index):
                move = network.random_move(self.settings.rate)
            yield network.logits(move)

    def _largest(self, network: SubNetworks) -> int:
        """The most units that are off in a random sub-network."""
        largest = 0
        for index in range(self.settings.masks):
            with self._random_numbers(index):
                largest = max(largest, int(-network.random_move(self.settings.rate).sum()))
        return largest

    def _extend(self, name: str, count: int, make: Callable[[int], float]) -> None:
        """Make what is missing of a list of numbers."""
        made: list[float] = self.found.setdefault(name, [])
        for index in _shown(range(len(made), count), f"{name} sub-networks"):
            made.append(make(index))
            if len(made) % _AT_ONCE == 0 or len(made) == count:
                self._write()

    @contextmanager
    def _random_numbers(self, index: int) -> Iterator[None]:
        """Random numbers of their own for each part, so that one that is made later is what it would have been."""
        with torch.random.fork_rng():
            torch.manual_seed(1_000_003 * self.settings.seed + index)
            yield

    def _write(self) -> None:
        write_json(self.path, self.found)


def _shown(indices: range, what: str) -> Iterable[int]:
    """Each of them, and a bar that says how far they have come."""
    return tqdm(indices, desc=what, initial=indices.start, total=indices.stop, leave=False)


def spread(study: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Kind of sub-network -> mean and standard deviation of its accuracy."""
    kinds = {name: torch.tensor(study[name], dtype=torch.float64) for name in ("random", "adversarial", "own")}
    return {name: (float(values.mean()), float(values.std(correction=0))) for name, values in kinds.items()}

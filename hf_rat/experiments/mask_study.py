"""What dropout masks do to a trained network: the study of adversarial dropout for recurrent nets (Park et al. 2019).

- How right sub-networks are: random ones; those that are worst for one of the examples; and each example's own worst.
- The mean worst mask of each checkpoint of a training.
- The terms of fraternal dropout (FD), expectation-linear dropout (EL) and adversarial dropout (AdD) at the network, as
  mean squares of differences of logits. 1/4 FD <= EL always. EL <= AdD where AdD has the worst mask of a ball that has
  all sampled ones in it; the search finds no better mask than that one, so that the inequality may fail.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_rat.data.whole_files import write_json
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
                self.found["terms"] = three_terms(network, whole, answers, self._largest(network), settings)
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
        for index in range(self.settings.masks):
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
        while len(made) < count:
            made.append(make(len(made)))
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


def three_terms(
    network: SubNetworks, whole: Tensor, answers: list[Tensor], largest: int, settings: Settings
) -> dict[str, Any]:
    """The terms of FD, EL and AdD at a network, in mean squared differences of logits, and which bound which.

    Args:
        network: finds the adversarial masks.
        whole: (examples, classes), the logits of the whole network.
        answers: those of random sub-networks, an even number of them: FD compares them two by two.
        largest: the most units that are off in one of these.
        settings: the rate and the steps of the search.

    Returns:
        "fd", "el" with their standard errors over the masks, "add" with the rate of the settings and
        "add_largest_sampled" with as many units off as in any sampled mask; and the inequalities.
    """
    el = torch.stack([_gap(answer, whole) for answer in answers])
    fd = torch.stack([_gap(a, b) for a, b in zip(answers[::2], answers[1::2], strict=True)])
    radii = {"add": settings.rate, "add_largest_sampled": largest / network.units}
    found: dict[str, Any] = {
        "fd": float(fd.mean()),
        "fd_error": float(fd.std() / len(fd) ** 0.5),
        "el": float(el.mean()),
        "el_error": float(el.std() / len(el) ** 0.5),
        "units_off": {"add": int(settings.rate * network.units + 1e-9), "add_largest_sampled": largest},
    }
    for name, rate in radii.items():
        moves = network.worst_moves(rate, settings.steps, divergence="logit_mse")
        found[name] = float(_gap(network.logits(moves), whole))
    return found | {
        "quarter_fd_at_most_el": 0.25 * found["fd"] <= found["el"],
        "el_at_most_add": {name: found["el"] <= found[name] for name in radii},
    }


def _gap(a: Tensor, b: Tensor) -> Tensor:
    """The mean over examples and logits of squared differences: a scalar in double precision."""
    return (a.double() - b.double()).square().mean()


def spread(study: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Kind of sub-network -> mean and standard deviation of its accuracy."""
    kinds = {name: torch.tensor(study[name], dtype=torch.float64) for name in ("random", "adversarial", "own")}
    return {name: (float(values.mean()), float(values.std(correction=0))) for name, values in kinds.items()}

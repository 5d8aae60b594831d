"""The terms of fraternal dropout (FD), expectation-linear dropout (EL) and adversarial dropout (AdD) at a network.

They are mean squares of differences of logits. 1/4 FD <= EL always. EL <= AdD where AdD has the worst mask of a ball
that has all sampled ones in it; the search finds no better mask than that one, so that the inequality may fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_rat.engine.sub_networks import SubNetworks


def two_terms(whole: Tensor, answers: Sequence[Tensor]) -> dict[str, Any]:
    """The terms of FD and EL at a network.

    Args:
        whole: (examples, classes), the logits of the whole network.
        answers: those under random masks, an even number of them: FD compares them two by two.

    Returns:
        "fd", "el" with their standard errors over the masks, "fd_error" and "el_error"; and
        "quarter_fd_at_most_el".
    """
    el = torch.stack([squared_gap(answer, whole) for answer in answers])
    fd = torch.stack([squared_gap(a, b) for a, b in zip(answers[::2], answers[1::2], strict=True)])
    found: dict[str, Any] = {
        "fd": float(fd.mean()),
        "fd_error": float(fd.std() / len(fd) ** 0.5),
        "el": float(el.mean()),
        "el_error": float(el.std() / len(el) ** 0.5),
    }
    return found | {"quarter_fd_at_most_el": 0.25 * found["fd"] <= found["el"]}


def three_terms(
    network: SubNetworks, whole: Tensor, answers: Sequence[Tensor], largest: int, rate: float, steps: int
) -> dict[str, Any]:
    """The terms of FD, EL and AdD at a network, in mean squared differences of logits, and which bound which.

    Args:
        network: finds the adversarial masks.
        whole: (examples, classes), the logits of the whole network.
        answers: those of random sub-networks, an even number of them: FD compares them two by two.
        largest: the most units that are off in one of these.
        rate: share of units that are off in adversarial masks at most.
        steps: of their search.

    Returns:
        What `two_terms` returns, "add" with this rate and "add_largest_sampled" with as many units off as in any
        sampled mask; and the inequalities.
    """
    radii = {"add": rate, "add_largest_sampled": largest / network.units}
    found: dict[str, Any] = two_terms(whole, answers)
    found["units_off"] = {"add": int(rate * network.units + 1e-9), "add_largest_sampled": largest}
    for name, radius in radii.items():
        moves = network.worst_moves(radius, steps, divergence="logit_mse")
        found[name] = float(squared_gap(network.logits(moves), whole))
    return found | {
        "el_at_most_add": {name: found["el"] <= found[name] for name in radii},
    }


def squared_gap(a: Tensor, b: Tensor) -> Tensor:
    """The mean over examples and logits of squared differences: a scalar in double precision."""
    return (a.double() - b.double()).square().mean()

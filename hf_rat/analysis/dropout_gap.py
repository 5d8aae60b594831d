"""Dropout's gap: a model is trained as many sub-models under random masks, and evaluated as one without any.

How far the sub-models differ from each other and from the whole, which averages their weights; whether the average of
their probabilities does better than it (R-AT, figure 4); and the terms that fraternal dropout (FD), expectation-linear
dropout (EL) and adversarial dropout (AdD) are made of, at a trained model.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rat.analysis.logits import Batches, Said, ask, ask_sub_models
from hf_rat.engine.mask_terms import squared_gap, three_terms, two_terms
from hf_rat.engine.sub_networks import SubNetworks
from hf_rat.finetuning.monte_carlo import average_passes
from hf_rat.passes.dropout import without_trace
from hf_rat.passes.sites.logits import INPUT_OF
from hf_rat.regularizers.recipes import MASK_SITES


@dataclass(frozen=True)
class DropoutGap:
    """Of one model. Scores are those of `Said.scores`.

    Args:
        masks: sub-models, each the model in one pass with dropout over all rows.
        seed: of the masks.
        whole: scores of the model without dropout: the average of the sub-models' weights.
        one_pass: mean scores of the sub-models, that is of one pass with dropout.
        one_pass_deviation: standard deviations of these over the sub-models.
        averaged: scores of the mean of the sub-models' probabilities, of a regression of their values.
        variance: over the sub-models, of a probability, of a regression of the value; mean over rows and classes.
        agreement: share of pairs of sub-models that predict the same class, mean over the rows; None of a regression.
        averaged_from_whole: KL(mean of the probabilities || whole) in nats, of a regression the mean squared
            difference; mean over the rows.
        averaged_as_whole: share of rows to which both give the same class; None of a regression.
        terms: of FD and EL at the model's own dropout, as in `hf_rat.engine.mask_terms.two_terms`.
    """

    masks: int
    seed: int
    whole: dict[str, float]
    one_pass: dict[str, float]
    one_pass_deviation: dict[str, float]
    averaged: dict[str, float]
    variance: float
    agreement: float | None
    averaged_from_whole: float
    averaged_as_whole: float | None
    terms: dict[str, Any]


def dropout_gap(
    model: nn.Module, batches: Batches, masks: int = 20, seed: int = 0, asked: str = "dropout's gap"
) -> DropoutGap:
    """Compare a model with its sub-models.

    Args:
        model: with dropout, in whatever mode; it stays as it is. A classifier or a regression.
        batches: its inputs with labels, on its device.
        masks: sub-models, an even number.
        seed: of the masks.
        asked: the beginning of errors.

    Raises:
        ValueError: the model has no dropout, or `masks` is odd or below 4.
    """
    if masks < 4 or masks % 2:
        raise ValueError(f"{asked}: masks={masks}; an even number of at least 4 is needed, for FD takes them in pairs")
    said = ask(model, batches)
    sub_models = ask_sub_models(model, batches, masks, asked, seed)
    scores = [said.scores(one) for one in sub_models]
    each = {name: torch.tensor([one[name] for one in scores], dtype=torch.float64) for name in scores[0]}
    averaged = average_passes(list(sub_models), said.regression).logits
    values = sub_models if said.regression else sub_models.softmax(-1)
    return DropoutGap(
        masks=masks,
        seed=seed,
        whole=said.scores(),
        one_pass={name: float(numbers.mean()) for name, numbers in each.items()},
        one_pass_deviation={name: float(numbers.std()) for name, numbers in each.items()},
        averaged=said.scores(averaged),
        variance=float(values.var(0).mean()),
        agreement=None if said.regression else agreement(sub_models.argmax(-1)),
        averaged_from_whole=_distance(said, averaged),
        averaged_as_whole=None if said.regression else _share(averaged.argmax(-1) == said.logits.argmax(-1)),
        terms=two_terms(said.logits, list(sub_models)),
    )


def agreement(predicted: Tensor) -> float:
    """The share of pairs of sub-models that predict the same, mean over the rows.

    Args:
        predicted: int64 (sub-models, rows).
    """
    count = len(predicted)
    votes = F.one_hot(predicted).sum(0).double()
    return float((votes * (votes - 1)).sum(-1).mean() / (count * (count - 1)))


def remark(
    model: nn.Module,
    batches: Batches,
    site: str = "logits",
    rate: float = 0.05,
    steps: int = 2,
    masks: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Remark 1 of adversarial dropout (Park et al. 2019), 1/4 FD <= EL <= AdD, at one layer of a trained model.

    Random masks of the layer, and for each example the mask that moves its logits most, as far as the search finds it;
    nothing else drops out.

    Args:
        model: as in `dropout_gap`; it needs no dropout of its own.
        batches: likewise.
        site: where the masks are, as in `adversarial_dropout`: "logits", the input of the layer that makes them,
            "recurrent", or the name of another linear layer.
        rate: at which random masks drop a unit; and share of the units that an adversarial one drops at most.
        steps: of the search.
        masks: random masks, an even number.
        seed: of the masks.

    Returns:
        What `hf_rat.engine.mask_terms.three_terms` returns.

    Raises:
        ValueError: the model has no such site, or this rate drops no unit of it.
    """
    with (
        without_trace(model, batches[0]["labels"].device),
        torch.backends.cudnn.flags(enabled=False),
        torch.enable_grad(),
        closing(SubNetworks(model, batches, MASK_SITES.get(site, INPUT_OF + site))) as network,
    ):
        if int(rate * network.units + 1e-9) < 1:
            least = f"at least {1 / network.units:.3g} is needed"
            raise ValueError(f"rate={rate}: of the {network.units} units at {site!r} that is less than one; {least}")
        torch.manual_seed(seed)
        moves = [network.random_move(rate) for _ in range(masks)]
        answers = [network.logits(move) for move in moves]
        largest = max(1, *(int(-move.sum()) for move in moves))
        return three_terms(network, network.logits(), answers, largest, rate, steps)


def _distance(said: Said, averaged: Tensor) -> float:
    if said.regression:
        return float(squared_gap(averaged, said.logits))
    whole = said.logits.log_softmax(-1)
    return float(F.kl_div(whole, averaged, log_target=True, reduction="batchmean"))


def _share(which: Tensor) -> float:
    return float(which.double().mean())

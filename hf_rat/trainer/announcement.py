"""What a run says before it begins: the regularizer, its price, and how it is run."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from transformers import TrainingArguments

from hf_rat.engine.cost import Cost
from hf_rat.engine.regularization import Regularization
from hf_rat.regularizers.schedules import thresholds
from hf_rat.trainer.average import Average

logger = logging.getLogger(__name__)


def tell(line: str) -> None:
    """Log `line` as information, so that it is seen in a script that has set up no logging too.

    A level that the script gave to the logger "hf_rat" is obeyed, and so are handlers that it set up.
    """
    package = logging.getLogger(__name__.partition(".")[0])
    fallback = None if package.hasHandlers() else logging.StreamHandler()
    level = package.level
    if fallback is not None:
        package.addHandler(fallback)
    if level == logging.NOTSET:
        package.setLevel(logging.INFO)
    try:
        logger.info(line)
    finally:
        package.setLevel(level)
        if fallback is not None:
            package.removeHandler(fallback)


class Announcer:
    """Tells what is going to be done before the first pass, and after it what only that pass could tell.

    Args:
        heard: whether this process says anything.
    """

    def __init__(self, heard: bool) -> None:
        self._heard = heard
        self._told: set[str] = set()

    @property
    def has_told(self) -> bool:
        return bool(self._told)

    def tell_new(self, facts: Mapping[str, str]) -> None:
        """One line of those facts whose key has not been told yet; none if all have."""
        new = [phrase for key, phrase in facts.items() if key not in self._told]
        if new and self._heard:
            tell("; ".join(new if not self._told else ["After the first batch", *new]))
        self._told.update(facts)


def costs_of_run(regularization: Regularization, with_unlabeled: bool = False) -> dict[Cost, int]:
    """What a step costs -> how many steps of the run do, cheapest first.

    Args:
        regularization: opened on the model; where it does not know the run, all steps count as those at full price.
        with_unlabeled: whether a batch without labels goes beside each batch.
    """
    found: dict[Cost, int] = {}
    for step, count in regularization.schedule.phases:
        cost = regularization.cost(step)
        cost = cost + regularization.cost(step, unlabeled=True) if with_unlabeled else cost
        found[cost] = found.get(cost, 0) + count
    return dict(sorted(found.items(), key=lambda entry: entry[0].time))


def announcement(
    regularization: Regularization,
    args: TrainingArguments,
    with_unlabeled: bool = False,
    average: Average | None = None,
) -> dict[str, str]:
    """What a run does, at what price, and how: the phrases of one line, by what they tell.

    Args:
        regularization: opened on the model.
        args: of the run.
        with_unlabeled: whether a batch without labels goes beside each batch.
        average: of the weights, where one is taken.
    """
    costs = costs_of_run(regularization, with_unlabeled)
    dearest, steps = max(costs, key=lambda cost: cost.time), sum(costs.values())
    if len(costs) == 1:
        passes, price = f"{dearest} per step", dearest.price()
    else:
        passes = ", ".join(f"{cost} in {count} of {steps} steps" for cost, count in costs.items())
        price = dearest.price(sum(cost.time * count for cost, count in costs.items()) / steps)
    said = {"regularizer": f"Regularizer {regularization.regularizer!r}: {passes} (plain: 1 and 1)"}
    if not regularization.is_plain:
        whole = regularization.why_not_bucketed
        if whole is None:
            said |= {"price": f"{price}, before length buckets", "split": "batches split by length"}
        else:
            said |= {"price": price, f"whole: {whole}": f"batches not split by length: {whole}"}
    taken = regularization.weighting.taken
    if taken is not None:
        # Some heads write the kind into their configuration in their first pass: that is how it is found from then on.
        said[taken.problem] = f"kind of task: {taken.problem} ({taken.because})"
    said["device"] = f"on {args.device.type} x {args.world_size}"
    if waiting := sorted(set(thresholds(regularization.regularizer))):
        shares = ", ".join(f"{below:g}" for below in waiting)
        said["waits"] = f"waits until the task loss is below {shares} of what it was at first"
    if average is not None:
        said["average"] = f"evaluated and saved: {average!r} of the weights"
    if (decay := getattr(args, "layer_decay", None)) is not None:
        said["layer_decay"] = f"learning rate of each lower layer x {decay:g}"
    if not getattr(args, "clip_embeddings", True):
        said["clip_embeddings"] = f"gradients clipped to norm {args.max_grad_norm:g}, those of embeddings left out"
    if (lr_decay := getattr(args, "lr_decay", None)) is not None:
        said["lr_decay"] = f"learning rate of each step x {lr_decay:g}"
    if (steps := getattr(args, "probe_steps", 0)) > 0:
        said["probe_steps"] = f"steps that train the head alone: {steps}"
    chosen = getattr(args, "fast_choices", ())
    if chosen:
        said["fast"] = f"fast: {', '.join(chosen)}"
    return said

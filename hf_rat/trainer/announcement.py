"""What a run says before it begins: the regularizer, its price, and how it is run."""

from __future__ import annotations

import logging

from transformers import TrainingArguments

from hf_rat.engine.regularization import Regularization

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


def announcement(regularization: Regularization, args: TrainingArguments, with_unlabeled: bool = False) -> str:
    """One line.

    Args:
        regularization: opened on the model.
        args: of the run.
        with_unlabeled: whether a batch without labels goes beside each batch.
    """
    cost = regularization.cost()
    if with_unlabeled:
        cost += regularization.cost(unlabeled=True)
    said = [f"Regularizer {regularization.regularizer!r}: {cost} per step (plain: 1 and 1)"]
    if not regularization.is_plain:
        whole = regularization.why_not_bucketed
        if whole is None:
            said += [f"{cost.price()}, before length buckets", "batches split by length"]
        else:
            said += [cost.price(), f"batches not split by length: {whole}"]
    taken = regularization.weighting.taken
    if taken is not None:
        said.append(f"kind of task: {taken.problem} ({taken.because})")
    said.append(f"on {args.device.type} x {args.world_size}")
    chosen = getattr(args, "fast_choices", ())
    if chosen:
        said.append(f"fast: {', '.join(chosen)}")
    return "; ".join(said)

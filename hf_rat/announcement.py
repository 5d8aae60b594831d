"""What a run says before it begins: the regularizer, its price, and how it is run."""

from __future__ import annotations

from transformers import TrainingArguments

from hf_rat.regularization import Regularization


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
        whole = regularization.whole_because
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

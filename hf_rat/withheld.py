"""The gradients that passes withheld from the embedding table, given back at once."""

from __future__ import annotations

from accelerate import Accelerator
from torch import Tensor

from hf_rat.regularizers.batches import Batch
from hf_rat.regularizers.sites import EmbeddingSite


def given_back(batch: Batch, accumulation: int, accelerator: Accelerator | None) -> Tensor | float:
    """What `batch` owes the embeddings, as a scalar of value zero whose backward gives it back."""
    # A leaf's gradient is that of a loss that was divided and scaled as the returned one is going to be.
    divided = float(accumulation)
    if accelerator is not None:
        divided *= accelerator.gradient_accumulation_steps
        if accelerator.scaler is not None:
            divided /= accelerator.scaler.get_scale()
    owed: Tensor | float = 0.0
    while batch.owing:
        name, leaf = batch.owing.pop()
        site = batch.open_site(name)
        if leaf.grad is not None and isinstance(site, EmbeddingSite):
            owed = owed + site.owed(batch.inputs, leaf.grad * divided)
    return owed

"""The gradients that passes withheld from the embedding table, given back at once."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rat.engine.engine import Engine
from hf_rat.passes.batch import Batch
from hf_rat.passes.sites import EmbeddingSite


def given_back(batch: Batch, accumulation: int, engine: Engine) -> Tensor | float:
    """What `batch` owes the embeddings, as a scalar of value zero whose backward gives it back."""
    # A leaf's gradient is that of a loss that was divided and scaled as the returned one is going to be.
    divided = accumulation * engine.accumulation / engine.scale(torch.ones((), device=batch.device))
    owed: Tensor | float = 0.0
    while batch.owing:
        name, leaf = batch.owing.pop()
        site = batch.open_site(name)
        if leaf.grad is not None and isinstance(site, EmbeddingSite):
            owed = owed + site.owed(batch.inputs, leaf.grad * divided)
    return owed

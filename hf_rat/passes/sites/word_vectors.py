"""The vectors of a module that looks up words."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def look_up(module: nn.Module, ids: Tensor) -> Tensor | None:
    """What `module` puts out for `ids` in evaluation, (..., dim); no graph.

    None where only a forward of the model can tell: of a module that does more than look up, and of a table that an
    engine shards.
    """
    table = getattr(module, "weight", None)
    if type(module).forward is not nn.Embedding.forward or isinstance(table, DTensor) or hasattr(table, "ds_tensor"):
        return None
    training = module.training
    try:
        module.eval()  # the noise that the Trainer's NEFTune adds is no length of the text's own
        with torch.no_grad():
            found: Tensor = module(ids)
        return found
    finally:
        module.train(training)


def mean_norm(module: nn.Module) -> float | None:
    """Of what the module puts out for all its tokens: some scale or normalise the rows of their table."""
    table = getattr(module, "weight", None)
    if table is None:
        return 1.0
    with torch.no_grad():
        if type(module).forward is nn.Embedding.forward:
            mean = table.float().norm(dim=-1).mean()
            return float(mean.full_tensor() if isinstance(mean, DTensor) else mean)
        if isinstance(table, DTensor):
            return None
        ids = torch.arange(len(table), device=table.device)
        training = module.training
        try:
            module.eval()  # no word dropout
            return float(torch.cat([module.forward(some).float().norm(dim=-1) for some in ids.split(1024)]).mean())
        finally:
            module.train(training)

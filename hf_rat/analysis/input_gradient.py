"""How steep the task loss is in the input: what adversarial training is said to flatten (R-AT, equation 15)."""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor, nn

from hf_rat.analysis.logits import Batches
from hf_rat.passes.dropout import without_trace
from hf_rat.passes.outputs import loss_of
from hf_rat.passes.sites import EMBEDDINGS, open_site


def input_gradient_norms(model: nn.Module, batches: Batches, site: str = EMBEDDINGS) -> Tensor:
    """The L2 norm of the gradient of each example's task loss with respect to its word vectors, in evaluation.

    To first order, a move of length epsilon raises the loss by at most epsilon times this norm.

    Args:
        model: returns a loss that is the mean over the examples of a batch. It stays as it is, and so do the random
            numbers.
        batches: its inputs with labels, on its device.
        site: where the gradient is taken: the word embeddings, or the name of a module, whose output it then is.

    Returns:
        float64 (examples,), over all tokens of an example but padding; on the CPU.

    Raises:
        ValueError: the model has no such site, or returns no loss.
    """
    found = []
    # cuDNN has no backward of a recurrent layer in evaluation.
    with (
        without_trace(model, batches[0]["labels"].device),
        torch.backends.cudnn.flags(enabled=False),
        torch.enable_grad(),
        closing(open_site(site, model)) as at,
    ):
        for batch in batches:
            geometry = at.geometry(batch)
            move = torch.zeros(geometry.shape, device=geometry.device, requires_grad=True)
            with at.perturbed(move):
                loss = loss_of(model(**batch))
            if loss is None:
                raise ValueError(f"{type(model).__name__} returned no loss for a batch of {', '.join(batch)}")
            (slope,) = torch.autograd.grad(loss, move)
            each = geometry.masked(slope).flatten(1).double().norm(dim=1)
            found.append(each.cpu() * geometry.shape[0])
    return torch.cat(found)

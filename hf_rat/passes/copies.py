"""Whether a batch may be run as several copies of itself in one forward: each must be judged as if it were alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.dropout import without_trace
from hf_rat.passes.execution import Run

WIDE = 2**14
"""An output vocabulary of this many entries is large: the gradients of its logits are the bulk of the memory."""


def tile(inputs: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Inputs that are all single values, or tensors of the batch's length, `times` over along the batch axis."""
    return {
        name: value.repeat(times, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) and value.dim() > 0 else value
        for name, value in inputs.items()
    }


def is_wide(model: nn.Module) -> bool:
    """Whether the passes at one point are better run one by one than as one doubled batch.

    Pass after pass, the gradient of one pass's loss need not share the memory with that of another's, and one pass
    over a large vocabulary is work enough for the machine.

    Args:
        model: the unwrapped model; a language model tells its output layer by `get_output_embeddings()`.
    """
    named = getattr(model, "get_output_embeddings", None)
    weight = getattr(named() if callable(named) else None, "weight", None)
    return weight is not None and weight.shape[0] >= WIDE


def find_uneven(inputs: Mapping[str, Any]) -> str | None:
    """Which input nobody can tell how to copy, in words: a list of objects, the patches of all images in one tensor.

    None where all are tensors of one length, or single values, which copies share.
    """
    lengths = {name: len(x) for name, x in inputs.items() if isinstance(x, Tensor) and x.dim() > 0}
    for name, value in inputs.items():
        if not (isinstance(value, Tensor | bool | int | float | str) or value is None):
            return f"{name} is a {type(value).__name__}"
    if len(set(lengths.values())) > 1:
        return f"its tensors have several lengths ({', '.join(f'{name} {n}' for name, n in lengths.items())})"
    return None


def find_coupling(run: Run, inputs: Mapping[str, Any], model: nn.Module, device: torch.device) -> str | None:
    """Why copies are not judged as if each were alone, in words: a loss of in-batch negatives, or of sums.

    Compares the loss and the logits of the batch with those of two copies of it, in evaluation mode and without
    gradients.

    Args:
        run: inputs -> (loss, logits); nothing in it is wrapped or compiled.
        inputs: of the model.
        model: what `run` runs.
        device: where it runs.
    """
    try:
        with without_trace(model, device):
            (loss, one), (both, two) = (run(tile(inputs, times)) for times in (1, 2))
    except Exception as error:  # whatever a model that nobody knows makes of a batch of twice the length
        return f"two copies cannot be run ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if two.shape != (2 * one.shape[0], *one.shape[1:]):
        return f"its logits have shape {tuple(one.shape)} alone and {tuple(two.shape)} for two copies"
    # Other kernels run for another number of rows; half precision feels that.
    rough = one.dtype in (torch.float16, torch.bfloat16)
    if not all(near(one, copy, 1e-1 if rough else 1e-2) for copy in two.chunk(2)):
        return "its logits are others if there are two copies"
    if loss is None or both is None:
        return None
    if not near(loss, both, 2e-2 if rough else 1e-3):
        return f"its loss is {float(loss):.4g} alone and {float(both):.4g} for two copies"
    return None


def near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether tensors of one shape are the same up to rounding, -inf and NaN included; relative to the first one."""
    one, other = one.detach().float(), other.detach().float()
    if not torch.equal(one.isfinite(), other.isfinite()):
        return False
    one, other = (x.nan_to_num(0.0, 0.0, 0.0) for x in (one, other))
    return bool((one - other).norm() <= tolerance * one.norm() + 1e-6)

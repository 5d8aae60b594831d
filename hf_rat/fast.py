"""What `--fast` changes on a CPU beside the precision: how dropout masks are drawn, and how attention drops out."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_rat.regularizers.adapters import without_adapters

_LEVELS = 1 << 16


@cache
def draw_masks_fast() -> torch.library.Library:
    """From now on `Tensor.bernoulli_(p)` draws from 16 random bits on the CPU: all that drops out in this process.

    That is five times as fast for tensors of more than 10^5 numbers (benchmarks/masks.py). p is rounded to a multiple
    of 2^-16. A kernel of torch's own operator is replaced, and not calls of dropout, since activation checkpointing
    must draw again in the backward what it drew, and attention draws where no call can be seen.

    Returns:
        What keeps the kernel in its place.
    """
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that it replaces one
        library.impl("bernoulli_.float", _bernoulli, "CPU")
    return library


def _bernoulli(x: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    if not 0 <= p <= 1:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
    ones = round(p * _LEVELS)
    if ones == 0:
        return x.zero_()
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return torch.le(bits.view(torch.int16)[: x.numel()].view(x.shape), ones - 1 - _LEVELS // 2, out=x)


def attend_in_half_precision(model: nn.Module) -> None:
    """Take a model's own attention where torch's fused one would have to drop out, which it does in fp32 on a CPU."""
    base = without_adapters(model)
    if not isinstance(base, PreTrainedModel) or base.config._attn_implementation != "sdpa":
        return
    rates = [rate for name, rate in base.config.to_dict().items() if "att" in name and "drop" in name]
    if any(isinstance(rate, float) and rate > 0 for rate in rates):
        base.set_attn_implementation("eager")

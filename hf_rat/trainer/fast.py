"""What `--fast` changes on a CPU beside the precision: how masks are drawn, attention drops out, memory is freed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_rat.trainer.kept_memory import keep_freed_memory

_LEVELS = 1 << 16


@contextmanager
def faster(args: TrainingArguments) -> Iterator[None]:
    """What `args.fast` changes for the whole process, for as long as a training runs; nothing without it.

    Evaluation during training is computed so too, and afterwards as it is without the flag.
    """
    if not getattr(args, "fast", False):
        yield
        return
    on_gpu, precision = args.device.type == "cuda", torch.get_float32_matmul_precision()
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]  # which may be the user's own
    torch.set_float32_matmul_precision("high" if on_gpu else "medium")
    try:
        if not on_gpu:
            draw_masks_fast()
            if args.bf16:
                attend_in_half_precision()
        with nullcontext() if on_gpu else keep_freed_memory():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        undo()
        AttentionInterface.register("sdpa", attention)


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


def attend_in_half_precision() -> None:
    """From now on attention with dropout in bf16 or fp16 on the CPU is computed in that, for models of "sdpa".

    torch's fused attention has no dropout on a CPU; what it does there instead is in fp32, whatever it is given. The
    function that transformers calls for "sdpa" is replaced, by one that leaves every other case to the one before.
    """
    AttentionInterface.register("sdpa", _attention)


def undo() -> None:
    """Draw masks as torch does again, and attend as transformers does."""
    if draw_masks_fast.cache_info().currsize:
        draw_masks_fast()._destroy()
        draw_masks_fast.cache_clear()
    AttentionInterface.register("sdpa", sdpa_attention_forward)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling Q K^T + mask), dropped out, times V. In: (batch, heads, time, dim); out: (batch, time, ...)."""
    causal = attention_mask is None and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    ours = dropout > 0 and query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16)
    ours = ours and query.shape[1] == key.shape[1] and not (causal and query.shape[2] != key.shape[2])
    unknown = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    if not ours or unknown or kwargs.get("output_attentions"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    if causal:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(-2, -1)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            attention_mask = torch.zeros_like(attention_mask, dtype=scores.dtype).masked_fill_(
                ~attention_mask, -math.inf
            )
        scores = scores + attention_mask.to(scores.dtype).clamp(min=torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    mixed = F.dropout(weights, dropout) @ value
    if attention_mask is not None:  # as in torch, who may look nowhere sees zeros
        mixed = mixed * (attention_mask > -math.inf).any(-1, keepdim=True)
    return mixed.transpose(1, 2).contiguous(), None

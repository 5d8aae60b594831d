"""Over a large output vocabulary the logits' gradients are the bulk of the memory."""

from __future__ import annotations

from torch import nn

WIDE = 2**14
"""An output vocabulary of this many entries is large."""


def wide(model: nn.Module) -> bool:
    """Whether the passes at one point are better run one by one than as one doubled batch.

    Pass after pass, the gradient of one pass's loss need not share the memory with that of another's, and one pass
    over a large vocabulary is work enough for the machine.

    Args:
        model: the unwrapped model; a language model tells its output layer by `get_output_embeddings()`.
    """
    named = getattr(model, "get_output_embeddings", None)
    weight = getattr(named() if callable(named) else None, "weight", None)
    return weight is not None and weight.shape[0] >= WIDE

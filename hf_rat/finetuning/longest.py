"""Whether the model has a position for every token of the longest text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

# Some models number positions from a few above 0 (RoBERTa: from 2), so that their table has more rows than they read.
_OFFSETS = 8


def require_positions(asked: int, model: Any, tokenizer: PreTrainedTokenizerBase, splits: Iterable[Any]) -> None:
    """Refuse texts that are longer than the model's position embeddings, found by running it on as many tokens.

    Args:
        asked: `--max_seq_length`, to which texts are cut.
        model: not yet on an accelerator, where a position too many ends the process.
        tokenizer: of the model.
        splits: encoded rows; a stream is taken to reach `asked`.

    Raises:
        ValueError: with the number of tokens that the model reads.
    """
    table = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(table, int) or min(asked, tokenizer.model_max_length) <= table - _OFFSETS:
        return
    longest = max((_longest(rows, asked) for rows in splits), default=0)
    if longest <= table - _OFFSETS or _reads(model, longest) or not _reads(model, 1):
        return
    fits, fails = 1, longest
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _reads(model, middle) else (fits, middle)
    raise ValueError(
        f"--max_seq_length {asked}: the model reads at most {fits} tokens, a text has {longest}, and the tokenizer "
        f"sets no limit; give --max_seq_length {fits}"
    )


def _longest(rows: Any, otherwise: int) -> int:
    if not isinstance(rows, Dataset):
        return otherwise
    batches = rows.select_columns(["input_ids"]).iter(1000)
    return max(len(ids) for batch in batches for ids in batch["input_ids"])


def _reads(model: Any, length: int) -> bool:
    """Whether a forward over so many tokens does not fail. Leaves no trace."""
    device, training = next(model.parameters()).device, model.training
    used = 1 if getattr(model.config, "pad_token_id", None) != 1 else 0  # padding has no position
    ids = torch.full((1, length), used, device=device)
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    finally:
        model.train(training)
    return True

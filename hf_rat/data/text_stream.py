"""A text as one stream of tokens: its lines, from files or rows, a tokenizer of their tokens, and the numbers.

tokenizer = stream_tokenizer(lines, "words")
ids = encode_lines(lines, tokenizer)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_rat.data.files import READERS, read_file
from hf_rat.data.reading import Reading, empty, undecodable
from hf_rat.data.vocabulary import EOS, UNK, count_words

TOKENS = ("words", "characters")


def read_text(flag: str, path: str | Path, reading: Reading) -> Dataset:
    """A csv, tsv, json, jsonl or parquet file as `read_file` reads it; of any other, a column "text" of its lines.

    Args:
        flag: what the user named the file by, for errors.
        path: exactly this file.
        reading: encoding, and how tables are read.

    Raises:
        ValueError: no such file, another encoding, or nothing in it.
    """
    path, what = Path(path), f"{flag} {str(path)!r}"
    if path.suffix.lower() in READERS:
        return read_file(flag, path, reading)
    if not path.is_file():
        raise ValueError(f"{what}: no such file")
    try:
        text = path.read_text(encoding=reading.codec)
    except UnicodeDecodeError:
        raise undecodable(what, path, reading, lambda before: before.count("\n")) from None
    if not text.strip():
        raise empty(what)
    return Dataset.from_dict({"text": text.removesuffix("\n").split("\n")})


def stream_tokenizer(
    lines: Sequence[str],
    tokens: str,
    min_count: int = 1,
    max_size: int | None = None,
    lowercase: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word or character of the lines, as they are written.

    Token 0 is `<unk>`, 1 is `<eos>`, then the others by falling count. It adds no token of its own to what it reads:
    `encode_lines` ends lines. Nothing pads.

    Args:
        lines: of the training text.
        tokens: "words", what stands between spaces, or "characters", each one, spaces too.
        min_count: tokens that occur less often are left to `<unk>`.
        max_size: size of the vocabulary at most, `<unk>` and `<eos>` included; None: no limit.
        lowercase: whether case is dropped.

    Raises:
        ValueError: fewer than two tokens would be known, so that nothing is left to predict.
    """
    normalizer = Normalizers([Lowercase()] if lowercase else [])
    splitter: Any = Split(Regex(r"[\s\S]"), "isolated") if tokens == "characters" else WhitespaceSplit()
    counted, _ = count_words(lines, normalizer, splitter, [UNK, EOS])
    often = (token for token, n in counted.items() if token not in (UNK, EOS) and n >= min_count)
    kept = sorted(often, key=lambda token: (-counted[token], token))
    kept = kept if max_size is None else kept[: max(max_size - 2, 0)]
    if len(kept) < 2:
        raise ValueError(
            f"of the {tokens} of the training text, {len(kept)} are known beside {UNK} and {EOS}: two are needed, "
            "or there is nothing to predict"
        )
    vocabulary = {token: number for number, token in enumerate([UNK, EOS, *kept])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    if tokens == "characters":
        tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        unk_token=UNK,
        bos_token=EOS,
        eos_token=EOS,
    )


def encode_lines(lines: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The tokens of all lines, each followed by the end token, (tokens,) int64."""
    fast: Any = tokenizer
    end, ids = fast.eos_token_id, []
    for line in fast.backend_tokenizer.encode_batch_fast(list(lines), add_special_tokens=False):
        ids += [*line.ids, end]
    return torch.tensor(ids, dtype=torch.int64)

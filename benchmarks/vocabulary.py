"""What R-Drop costs over a large vocabulary, as ratios to two plain passes: peak memory and time.

    python benchmarks/vocabulary.py --output results/cost/vocabulary/ratios.json

The model is a tiny decoder (hidden 64, 2 layers, built from its config, dropout 0.1), so that the logits are all that
counts. A plain pass is forward and backward with the model's own loss, its outputs let go before the backward, as the
Trainer does; two of them are twice its peak and twice its time. "hand-written R-Drop" is two forwards and one backward
of the dense formula.

Memory is the peak of the running sum of allocations and releases (see step_cost.py); `logits` says how often the
logits of one pass would fit into it. Times are medians of ratios over rounds in which every method runs once, in an
order drawn anew, one thread, CPU time.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hand_written import Batch, classic_rdrop, plain
from step_cost import Contestant, measure_peak, processor, race
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig
from transformers.utils import logging

from hf_rat import Regularization, parse

PLAIN, HAND_WRITTEN = "plain", "hand-written R-Drop"
FAMILIES = ("llama", "gpt2")


def config_of(family: str, vocabulary: int, length: int) -> PreTrainedConfig:
    if family == "gpt2":
        return GPT2Config(vocab_size=vocabulary, n_embd=64, n_layer=2, n_head=2, n_positions=length)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=length,
        attention_dropout=0.1,
    )


def enlist(name: str, config: PreTrainedConfig, dtype: torch.dtype) -> Contestant:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config).to(dtype).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    if name == PLAIN:
        backward: Callable[[Batch], Any] = partial(plain, model)
    elif name == HAND_WRITTEN:
        backward = partial(classic_rdrop, model)
    else:
        backward = Regularization(parse(name), model).backward
    return Contestant(name, model, optimizer, backward)


def measure(family: str, vocabulary: int, dtype: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    config = config_of(family, vocabulary, arguments.length)
    contestants = [enlist(name, config, getattr(torch, dtype)) for name in (PLAIN, *arguments.methods)]
    logits = arguments.batch_size * arguments.length * vocabulary * getattr(torch, dtype).itemsize

    def batch() -> Batch:
        ids = torch.randint(0, vocabulary, (arguments.batch_size, arguments.length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    for contestant in contestants:
        contestant.step(batch())
        contestant.peak_bytes = measure_peak(contestant, batch())
    race(contestants, arguments.rounds, 1, batch)
    reference = contestants[0]
    return [
        {
            "model": family,
            "vocabulary": vocabulary,
            "dtype": dtype,
            "method": contestant.name,
            "memory": contestant.peak_bytes / (2 * reference.peak_bytes),
            "time": median(
                mine / (2 * plain) for mine, plain in zip(contestant.seconds, reference.seconds, strict=True)
            ),
            "logits": contestant.peak_bytes / logits,
            "peak_bytes": contestant.peak_bytes,
            "seconds": contestant.seconds,
        }
        for contestant in contestants
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| model | vocabulary | dtype | method | memory | time | logits |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['model']} | {row['vocabulary']:,} | {row['dtype']} | {row['method']} | {row['memory']:.2f} "
        f"| {row['time']:.2f} | {row['logits']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="R-Drop over a large vocabulary, relative to two plain passes.")
    parser.add_argument("--methods", nargs="+", default=[HAND_WRITTEN, "rdrop"])
    parser.add_argument("--models", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[32_000, 64_000, 128_000])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for every round and the settings")
    arguments = parser.parse_args()

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    rows = [
        row
        for family in arguments.models
        for vocabulary in arguments.vocabularies
        for dtype in arguments.dtypes
        for row in measure(family, vocabulary, dtype, arguments)
    ]
    report = {
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("torch", "transformers")}},
        "processor": processor(),
        "results": rows,
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()

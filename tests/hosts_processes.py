"""Run by test_engines_hosts.py on each of two hosts; process 0 writes what both saw to a JSON file.

accelerate launch --config_file configs/accelerate/two_hosts.yaml ... hosts_processes.py RESULT.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import keyed
import runs
import tiny_tasks
import torch
import torch.distributed as dist

EVERY = [
    *(runs.SETTINGS[name] for name in ("plain", "freelb", "rat", "smart", "adversarial_dropout")),
    "rdrop(passes=3) + 0.5 * vat(epsilon=0.5, start=0.5)",
]
# Two steps: 2 hosts x 2 micro-batches x 4 examples, then 2 x 1 x 4.
SETTINGS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def language_model() -> dict[str, Any]:
    return {"model": tiny_tasks.task_model("causal_lm", 0.1), "options": tiny_tasks.options("causal_lm")}


def train(expression: str, **settings: Any) -> dict[str, Any]:
    one = runs.trainer(expression, keyed.KeyedTrainer, **SETTINGS, **settings)
    one.train()
    seen = runs.ran(one)
    flat = torch.cat([value.float().flatten() for value in seen.weights.values()])
    return {"logs": seen.logs, "equal": bool((one.accelerator.gather(flat[None]) == flat).all())}


def main() -> None:
    torch.set_num_threads(1)
    with keyed.noise():
        results: dict[str, Any] = {expression: train(expression) for expression in EVERY}
        by_position = {expression: train(expression, **language_model()) for expression in runs.BY_POSITION}
    networks: list[Any] = [None, None]
    dist.all_gather_object(networks, os.readlink("/proc/self/ns/net"))
    if dist.get_rank() == 0:
        content = {"examples": results, "positions": by_position, "networks": networks}
        Path(sys.argv[1]).write_text(json.dumps(content), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

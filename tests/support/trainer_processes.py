"""Run by test_trainer_processes.py in two processes; process 0 writes the logs of a step of each to a JSON file.

trainer_processes.py RESULT.json FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import launches
import test_hosts_sentence_transformers as sentences
import test_hosts_trl as sft
import torch

from hf_rat import parse


def steps(folder: Path, processes: int) -> dict[str, Any]:
    """The log of one optimizer step on the same eight examples: in each of `processes`, its share of them."""
    how = {"ddp_backend": "gloo"} if processes > 1 else {}
    logs = {}
    for expression in ("plain", "fgm(epsilon=0.5)", "rat(epsilon=0.3)"):
        one = sft.trainer(folder, parse(expression), per_device_train_batch_size=4 // processes, **how)
        logs[f"sft, {expression}"] = sft.logged(one)
    for expression in ("plain", "fgm(epsilon=0.5)"):
        step = {"per_device_train_batch_size": 8 // processes, "gradient_accumulation_steps": 1}
        one = sentences.trainer(str(folder), "pairs", folder / "out", parse(expression), **step, **how)
        logs[f"sentences, {expression}"] = sentences.logged(one)
    return logs


def main() -> None:
    torch.set_num_threads(1)
    logs = steps(Path(sys.argv[2]), processes=2)
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(logs), encoding="utf-8")
    launches.leave()


if __name__ == "__main__":
    main()

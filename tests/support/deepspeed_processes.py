"""Run by test_engines_deepspeed.py in two processes on the CPU; process 0 writes what they saw to a JSON file.

python -m torch.distributed.run --nproc-per-node 2 deepspeed_processes.py STAGE RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keyed
import launches
import runs
import tiny_tasks
import torch
from accelerate.state import AcceleratorState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from two_processes import BadPass

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
EVERY = [*(e for e in runs.INVARIANT if "top=" not in e), "fgm(epsilon=0.1, unit='embedding')"]
# Two steps: 2 processes x 2 micro-batches x 4 examples, then 2 x 1 x 4.
SETTINGS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def language_model() -> dict[str, Any]:
    return {"model": tiny_tasks.task_model("causal_lm", 0.1), "options": tiny_tasks.options("causal_lm")}


def train(stage: str, expression: str, bad: bool = False, **model: Any) -> dict[str, Any]:
    """`bad`: the second pass of process 1 has a gradient that is not finite."""
    config = json.loads((CONFIGS / f"deepspeed_zero{stage}.json").read_text(encoding="utf-8"))
    one = runs.trainer(expression, keyed.KeyedTrainer, deepspeed=config, **SETTINGS, **model)
    if bad and one.accelerator.process_index == 1:
        BadPass(one.model, 2, gradient=True)
    try:
        one.train()
    except ValueError as error:
        return {"refused": str(error)}
    finally:
        unset_hf_deepspeed_config()
        AcceleratorState._reset_state()
    assert one.model_wrapped.zero_optimization_stage() == int(stage)
    finite = all(bool(parameter.isfinite().all()) for parameter in one.model.parameters())
    return {"logs": runs.ran(one).logs, "finite": finite}


def main() -> None:
    torch.set_num_threads(1)
    with keyed.noise():
        results = {
            "by example": {expression: train(sys.argv[1], expression) for expression in EVERY},
            "by position": {one: train(sys.argv[1], one, **language_model()) for one in runs.BY_POSITION},
            "bad gradient": train(sys.argv[1], runs.SETTINGS["rat"], bad=True),
        }
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")
    launches.leave()


if __name__ == "__main__":
    main()

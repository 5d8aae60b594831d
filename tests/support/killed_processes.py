"""Run by test_engines_killed.py in two processes: a training that saves its checkpoints in FOLDER, and may lose one.

killed_processes.py FOLDER straight|WORKER_DIES|MAIN_DIES|CHECKPOINT_TO_RESUME_FROM
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import launches
import runs
import torch
import torch.distributed as dist
from transformers import Trainer, TrainerState

EXPRESSION = "rat(epsilon=0.5, warmup=5) + smart(epsilon=0.05, step=0.05, start=0.02, beta=0.5)"
"""A schedule, and an average of the model, which must both go on; with dropout."""
STEPS, EVERY, AT = 6, 2, 4
"""Steps of the run (three make an epoch, of which the last is short), of a checkpoint, and before a process dies."""

WORKER_DIES, MAIN_DIES = "worker in a pass", "main process in a save"


def training(folder: str) -> Trainer:
    adam = {"optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "linear", "max_grad_norm": 1.0}
    saving = {"save_strategy": "steps", "save_steps": EVERY, "output_dir": folder, "max_steps": STEPS}
    return runs.trainer(EXPRESSION, count=40, gradient_accumulation_steps=2, **adam, **saving)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_pass(one: Trainer) -> None:
    """Dies in the second micro-batch of a step, where the other waits for its part of a decision or of a gradient."""
    passes = []

    def count(*_: Any) -> None:
        if one.state.global_step == AT and one.model.training:
            passes.append(1)
        if len(passes) == 9:
            die()

    one.model.classifier.register_forward_hook(count)


def in_a_save() -> None:
    """Dies when the weights of the checkpoint are written, and its state is not."""
    write = TrainerState.save_to_json

    def write_or_die(state: TrainerState, path: str) -> None:
        if state.global_step == AT:
            die()
        write(state, path)

    TrainerState.save_to_json = write_or_die


def main() -> None:
    torch.set_num_threads(1)
    folder, what = sys.argv[1:]
    one = training(folder)
    rank = dist.get_rank()
    if what == WORKER_DIES and rank == 1:
        in_a_pass(one)
    if what == MAIN_DIES and rank == 0:
        in_a_save()
    one.train(resume_from_checkpoint=what if os.path.isdir(what) else None)
    launches.leave()


if __name__ == "__main__":
    main()

"""Run by test_invariance.py in two processes; process 0 writes what all of them saw to the JSON file it is given.

two_processes.py RESULT.json
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import keyed
import launches
import pytest
import runs
import tiny_tasks
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import TrainerCallback

from hf_rat.engine import regularization

GROUPINGS: dict[str, dict[str, Any]] = {
    "2 x 8": {"per_device_train_batch_size": 8, "max_steps": 1},
    "2 x 4, accumulated 2": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "2 x 8, single backward": {"per_device_train_batch_size": 8, "max_steps": 1, "reg_single_backward": True},
}
SPLIT = ["rat(epsilon=0.5)", "freelb(epsilon=0.4, step=0.2, steps=3, start=0.2)", "vat(epsilon=0.5, start=0.5)"]
"""Run in length buckets too, of which the processes have different numbers; and lean."""
LEAN = ["rat(epsilon=0.5)", "rdrop(passes=3)"]


AVERAGED = {
    "ema(0.5), plain": {"average": "ema(0.5)", "reg": "plain"},
    "swa(0.4), rat": {"average": "swa(0.4)", "reg": "rat(epsilon=0.5)"},
    "swa(0.4, below=1), fgm": {"average": "swa(0.4, below=1)", "reg": "fgm(epsilon=0.5, below=1)"},
    "ema(0.5), mean teacher": {"average": "ema(0.5)", "reg": "mean_teacher(alpha=9, beta=0.5)"},
}
"""Evaluated after each of three steps over 16 examples."""
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 3, "count": 48}


BY_POSITION = {name: how for name, how in GROUPINGS.items() if name != "2 x 8, single backward"}


class CountExchanges(TrainerCallback):
    """Counts the gradient exchanges of DDP (by the last of their buckets)."""

    def __init__(self) -> None:
        self.buckets = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.model_wrapped.register_comm_hook(None, self._exchange)

    def _exchange(self, state, bucket):  # DDP reads annotations, and knows no strings
        self.buckets += bucket.is_last()
        return allreduce_hook(None, bucket)


class BadPass:
    """Hook on the classifier: the logits of training pass `number` (from 1) of this process become NaN.

    `gradient`: its gradient does, while the logits stay as they are. A look at the model, without a graph, is no pass.
    """

    def __init__(self, model: nn.Module, number: int, gradient: bool = False) -> None:
        self.passes, self.number, self.gradient = 0, number, gradient
        model.classifier.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        trains = module.training and torch.is_grad_enabled()
        self.passes += trains
        if not trains or self.passes != self.number:
            return None
        if self.gradient:
            output.register_hook(lambda slope: slope * math.nan)
            return None
        return output * math.nan


def train(
    expression: str, bad: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    counter = CountExchanges()
    options = {"callbacks": [counter], **(options or {})}
    counter.trainer = one = runs.trainer(expression, keyed.KeyedTrainer, options=options, **settings)
    before = runs.ran(one).weights
    if bad and one.accelerator.process_index == bad["process"]:
        BadPass(one.model, bad["number"], bad.get("gradient", False))
    one.train()
    seen = runs.ran(one)
    evaluated = [log["eval_loss"] for log in one.state.log_history if "eval_loss" in log]
    flat = torch.cat([value.float().flatten() for value in seen.weights.values()])
    others = one.accelerator.gather(flat[None])
    return {
        "logs": seen.logs,
        "eval losses": evaluated,
        "exchanges": counter.buckets,
        "equal": bool((others == flat).all()),
        "finite": bool(flat.isfinite().all()),
        "moved": any(not torch.equal(before[name], value) for name, value in seen.weights.items()),
    }


def sizes_of_passes(process: int | None) -> dict[str, Any]:
    """How many examples each training pass of a step has, in each process, whose models differ.

    Args:
        process: where the classifier's input is masked by numbers that the whole batch shares; None: in neither.
    """
    sizes: list[int] = []
    one = runs.trainer(runs.SETTINGS["rat"], **GROUPINGS["2 x 8"])

    def mask(module: nn.Module, args: Any) -> Any:
        if module.training and torch.is_grad_enabled():
            sizes.append(len(args[0]))
        if one.accelerator.process_index == process and module.training:
            return args[0] * (torch.rand(args[0].shape[-1]) < 0.9) / 0.9
        return None

    one.model.classifier.register_forward_pre_hook(mask)
    one.train()
    flat = torch.cat([value.flatten() for value in runs.ran(one).weights.values()])
    every: list[Any] = [None, None]
    torch.distributed.all_gather_object(every, sizes)
    return {"sizes": every, "equal": bool((one.accelerator.gather(flat[None]) == flat).all())}


def averaged(settings: dict[str, Any]) -> dict[str, Any]:
    rows = {"eval_dataset": runs.examples(16, seed=2)}
    return {
        name: train(how["reg"], options=rows, average=how["average"], per_device_train_batch_size=8, **settings)
        for name, how in AVERAGED.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"grouped": {}, "bad": {}}
    results["draws for the batch in"] = {str(process): sizes_of_passes(process) for process in (None, 0, 1)}
    with keyed.noise():
        for expression in runs.INVARIANT:
            results["grouped"][expression] = {
                name: train(expression, **settings) for name, settings in GROUPINGS.items()
            }
        beside = {"unlabeled_dataset": runs.examples(40, seed=1), "data_collator": runs.collate_any}
        results["unlabeled"] = {
            name: train(runs.UNLABELED, options=beside, count=16, **{**settings, "max_steps": 1})
            for name, settings in GROUPINGS.items()
        }
        results["averaged"] = averaged(EVALUATED)
        eight = GROUPINGS["2 x 8"]
        results["lean"] = {expression: train(expression, reg_memory="lean", **eight) for expression in LEAN}
        with keyed.by_bucket(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(regularization, "overhead", lambda model: 0.0)  # a bucket for each length
            results["split"] = {expression: train(expression, **eight) for expression in SPLIT}
        results["by position"] = {
            f"{expression} on {task}": {
                name: train(
                    expression, options=tiny_tasks.options(task), model=tiny_tasks.task_model(task, 0.1), **how
                )
                for name, how in BY_POSITION.items()
            }
            for task in tiny_tasks.INVARIANT
            for expression in runs.BY_POSITION
        }
        one_step, single = GROUPINGS["2 x 8"], GROUPINGS["2 x 8, single backward"]
        rat = runs.SETTINGS["rat"]
        results["bad"] = {
            "plain": train("plain", **one_step),
            "adversarial pass": train(rat, bad={"process": 1, "number": 2}, **one_step),
            "adversarial pass, single backward": train(rat, bad={"process": 1, "number": 2}, **single),
            "clean pass": train(rat, bad={"process": 1, "number": 1}, **one_step),
            "gradient": train(rat, bad={"process": 1, "number": 2, "gradient": True}, **one_step),
        }
    if torch.distributed.get_rank() == 0:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump(results, file)
    launches.leave()


if __name__ == "__main__":
    main()

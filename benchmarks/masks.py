"""What drawing dropout masks costs on a CPU: torch's own way, and the 16 random bits a number of `--fast`.

    python benchmarks/masks.py --output results/cost/masks/ratios.json

In each round both draw a mask of every size, one after the other, and both make the whole of `F.dropout` on it; the
table shows nanoseconds a number, medians over the rounds. With one thread the time is the CPU time of the process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from step_cost import processor
from torch.nn import functional as F

from hf_rat.trainer.fast import draw_masks_fast, undo

WAYS = ("torch", "16 bits")


def seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of drawing dropout masks.")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[1 << 10, 1 << 14, 1 << 18, 1 << 22], help="numbers in a mask"
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for every round and the settings")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    rows: list[dict[str, Any]] = []
    for size in arguments.sizes:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(size, dtype=dtype)
            runs = {"mask": lambda x=x: x.bernoulli_(0.9), "dropout": lambda x=x: F.dropout(x, 0.1)}
            rows += [
                {"what": what, "numbers": size, "dtype": str(dtype), "way": way, "run": run, "seconds": []}
                for what, run in runs.items()
                for way in WAYS
            ]
    for number in range(arguments.rounds + 1):  # the first one warms up
        for way in WAYS:
            if way != "torch":
                draw_masks_fast()
            torch.empty(1).bernoulli_(0.5)  # the first call after the change finds its kernel
            for row in rows:
                if row["way"] == way:
                    taken = seconds(row["run"], clock)
                    row["seconds"] += [taken] * (number > 0)
            undo()
    for row in rows:
        del row["run"]
        row["nanoseconds"] = 1e9 * median(row["seconds"]) / row["numbers"]
    report = {
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "clock": "process time" if arguments.threads == 1 else "wall clock",
        "versions": {"torch": version("torch")},
        "processor": processor(),
        "rows": rows,
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("| what | numbers | torch | 16 bits | ratio |\n|---|---|---|---|---|")
    for torchs, ours in zip(rows[::2], rows[1::2], strict=True):
        was, now = torchs["nanoseconds"], ours["nanoseconds"]
        print(f"| {ours['what']}, {ours['dtype']} | {ours['numbers']} | {was:.2f} | {now:.2f} | {was / now:.1f} |")


if __name__ == "__main__":
    main()

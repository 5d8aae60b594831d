"""What the convolutions of TextCNN cost beside `torch.nn.Conv1d`: forward and backward, widths 2, 3 and 4.

    python benchmarks/convolution.py --output results/cost/convolution/ratios.json

A shape is batch x time x input x filters. In each round every way makes one forward and one backward, in an order
drawn anew; the table shows the median over the rounds of its time divided by that of `Conv1d`, masked and maximised
over time by autograd, in the same round. One thread, the CPU time of the process. Padded rows have lengths spread
evenly from a third of the time to all of it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from step_cost import processor
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rat.models.modeling_textcnn import LargestConvolution

WIDTHS = (2, 3, 4)


def largest(answers: Tensor, lengths: Tensor, width: int) -> Tensor:
    """(batch, filters, windows) -> (batch, filters), of the windows that touch no padding."""
    beyond = torch.arange(answers.size(2)) > (lengths - width).clamp(min=0).unsqueeze(1)
    return answers.masked_fill(beyond.unsqueeze(1), -torch.inf).amax(2)


def conv1d(layer: nn.Conv1d, x: Tensor, lengths: Tensor) -> Tensor:
    return largest(F.conv1d(x.transpose(1, 2), layer.weight, layer.bias), lengths, layer.kernel_size[0])


def channels_last(layer: nn.Conv1d, x: Tensor, lengths: Tensor) -> Tensor:
    answers = F.conv2d(x.transpose(1, 2).unsqueeze(2), layer.weight.unsqueeze(2), layer.bias).squeeze(2)
    return largest(answers, lengths, layer.kernel_size[0])


def windows(layer: nn.Conv1d, x: Tensor, lengths: Tensor) -> Tensor:
    """All windows laid out, and one matrix product."""
    width = layer.kernel_size[0]
    rows = x.unfold(1, width, 1).flatten(2)
    return largest(F.linear(rows, layer.weight.flatten(1), layer.bias).transpose(1, 2), lengths, width)


def ours(layer: nn.Conv1d, x: Tensor, lengths: Tensor) -> Tensor:
    return layer(x, lengths)


WAYS: dict[str, Callable[[nn.Conv1d, Tensor, Tensor], Tensor]] = {
    "torch.nn.Conv1d": conv1d,
    "channels last": channels_last,
    "windows, one product": windows,
    "LargestConvolution": ours,
}


def measure(shape: str, padded: bool, rounds: int) -> list[dict[str, Any]]:
    """One block of the table."""
    batch, steps, width, filters = (int(number) for number in shape.split("x"))
    layers = [LargestConvolution(width, filters, size) for size in WIDTHS]
    lengths = torch.linspace(steps / 3 if padded else steps, steps, batch).long()
    x = torch.randn(batch, steps, width).masked_fill(torch.arange(steps).unsqueeze(1) >= lengths[:, None, None], 0)
    x.requires_grad_()
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name in random.sample(list(WAYS), len(WAYS)):
            start = time.process_time()
            features = torch.cat([WAYS[name](layer, x, lengths).relu() for layer in layers], 1)
            torch.autograd.grad(
                features.square().sum(), [x, *(weight for layer in layers for weight in layer.parameters())]
            )
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    rows = []
    for name, own in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(own, seconds["torch.nn.Conv1d"], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        found = {"ratio": median(ratios), "quartiles": [low, high], "median_seconds": median(own), "seconds": own}
        rows.append({"shape": shape, "padded": padded, "way": name, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of TextCNN's convolutions relative to torch.nn.Conv1d.")
    parser.add_argument("--shapes", nargs="+", default=["32x256x300x256", "32x64x300x256", "32x24x300x256"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="JSON file for every round and the settings")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: quartiles need at least 2")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    rows = []
    print("| way | shape | ratio | quartiles | ms |\n|---|---|---|---|---|")
    for shape in arguments.shapes:
        for padded in (False, True):
            for row in measure(shape, padded, arguments.rounds):
                rows.append(row)
                low, high = row["quartiles"]
                place = f"{shape} {'padded' if padded else 'full'}"
                milliseconds = 1e3 * row["median_seconds"]
                print(
                    f"| {row['way']} | {place} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} | {milliseconds:.0f} |",
                    flush=True,
                )
    if arguments.output:
        settings = {"shapes": arguments.shapes, "rounds": arguments.rounds, "threads": 1, "clock": "process time"}
        found = {"settings": settings, "versions": {"torch": version("torch")}, "processor": processor(), "rows": rows}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

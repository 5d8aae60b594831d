"""What recurrent dropout costs: forward and backward of hf_rat's RNN, LSTM and GRU, as ratios to torch's own layers.

    python benchmarks/recurrent.py --output results/cost/recurrent/ratios.json
    python benchmarks/recurrent.py --shapes 32x200x128x256 --kinds variational zoneout --rounds 30

A shape is batch x time x input x hidden. In each round every layer makes one forward and one backward, in an order
drawn anew; the table shows the median over the rounds of a layer's time divided by that of torch's layer on the same
input in the same round. With one thread the time is the CPU time of the process.

Packed rows have lengths spread evenly from a tenth of the time to all of it; their reference is torch's layer on a
packed sequence. "loop" is the usual way to per-example masks, a Python loop over torch's cell.

The matrix products decide much of it: torch's LSTM calls oneDNN on CPUs, everything else MKL, which is half as fast on
AMD's. `--precision medium` measures with torch.set_float32_matmul_precision("medium"), which takes oneDNN throughout.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from step_cost import processor
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from hf_rat.models.recurrent import GRU, LSTM, RNN
from hf_rat.trainer.fast import draw_masks_fast

CELLS: dict[str, Any] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "variational": {"variational": 0.25},
    "variational per batch": {"variational": 0.25, "variational_per": "batch"},
    "recurrent": {"recurrent": 0.25},
    "rnndrop": {"rnndrop": 0.25},
    "zoneout": {"zoneout": 0.05, "zoneout_cell": 0.5},
    "dropconnect": {"dropconnect": 0.5},
    "all": {"variational": 0.25, "recurrent": 0.25, "dropconnect": 0.5},
}
UNDEFINED = {"LSTM": (), "GRU": ("zoneout_cell",), "RNN": ("zoneout_cell", "rnndrop")}
LOOP = "loop over cells, variational"
SHAPES = ("32x200x128x256", "64x400x256x512", "16x100x128x128")


def kinds_of(cell: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """The dropouts that a cell defines."""
    found = {}
    for name in names:
        rates = {key: rate for key, rate in KINDS[name].items() if key not in UNDEFINED[cell]}
        if rates or not KINDS[name]:
            found[name] = rates
    return found


def loop(cell: Any, size: int, x: Tensor) -> Tensor:
    """Variational dropout by hand: torch's cell, step by step."""
    mask = nn.functional.dropout(x.new_ones(x.size(0), size), 0.25)
    state, outputs = None, []
    h = x.new_zeros(x.size(0), size)
    for step in x.unbind(1):
        if isinstance(cell, nn.LSTMCell):
            state = cell(step, (h * mask, x.new_zeros(x.size(0), size) if state is None else state[1]))
            h = state[0]
        else:
            h = cell(step, h * mask)
        outputs.append(h)
    return torch.stack(outputs, 1)


def timed(run: Callable[[], Tensor], parameters: list[Tensor], clock: Callable[[], float]) -> float:
    start = clock()
    output = run()
    torch.autograd.grad(output.sum(), parameters)
    return clock() - start


def measure(
    cell: str, shape: str, packed: bool, names: list[str], rounds: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """One block of the table."""
    batch, steps, width, size = (int(number) for number in shape.split("x"))
    x = torch.randn(batch, steps, width, requires_grad=True)
    lengths = torch.linspace(steps / 10, steps, batch).long() if packed else None
    twin = getattr(nn, cell)(width, size, batch_first=True)
    runs: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {}
    if lengths is None:
        runs[f"torch.nn.{cell}"] = (lambda: twin(x)[0], [x, *twin.parameters()])
    else:
        runs[f"torch.nn.{cell}"] = (
            lambda: twin(pack_padded_sequence(x, lengths, True, enforce_sorted=False))[0].data,
            [x, *twin.parameters()],
        )
    for name, rates in kinds_of(cell, names).items():
        layer = CELLS[cell](width, size, dropout=rates)
        run: Callable[[], Any] = partial(layer, x, lengths=lengths)
        runs[name] = (lambda run=run: run()[0], [x, *layer.parameters()])  # type: ignore[misc]
    if lengths is None and "variational" in names:
        unit = getattr(nn, f"{cell}Cell")(width, size)
        runs[LOOP] = (partial(loop, unit, size, x), [x, *unit.parameters()])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run, parameters in runs.values():
        timed(run, parameters, clock)
    order = list(runs)
    for number in range(rounds):
        random.shuffle(order)
        for name in order:
            seconds[name].append(timed(*runs[name], clock))
        print(f"\r{cell} {shape} round {number + 1}/{rounds} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    reference = seconds[f"torch.nn.{cell}"]
    rows: list[dict[str, Any]] = []
    for name, own in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(own, reference, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        rows.append(
            {
                "cell": cell,
                "shape": shape,
                "packed": packed,
                "layer": name,
                "ratio": median(ratios),
                "quartiles": [low, high],
                "of_minima": min(own) / min(reference),
                "seconds": own,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of recurrent dropouts relative to torch's own layers.")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=["LSTM", "GRU"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="batch x time x input x hidden")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--layout", nargs="+", choices=["full", "packed"], default=["full", "packed"])
    parser.add_argument("--precision", nargs="+", choices=["highest", "medium"], default=["highest", "medium"])
    parser.add_argument("--fast_masks", action="store_true", help="draw masks as --fast does, for every contestant")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for every round and the settings")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: quartiles need at least 2")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    if arguments.fast_masks:
        draw_masks_fast()
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    rows: list[dict[str, Any]] = []
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    report = {
        "settings": settings,
        "clock": "process time" if arguments.threads == 1 else "wall clock",
        "versions": {"torch": version("torch")},
        "processor": processor(),
        "rows": rows,
    }
    print("| layer | shape | precision | ratio | quartiles | of minima |\n|---|---|---|---|---|---|")
    for shape in arguments.shapes:
        for layout in arguments.layout:
            for cell in arguments.cells:
                for precision in arguments.precision:
                    torch.set_float32_matmul_precision(precision)
                    block = measure(cell, shape, layout == "packed", arguments.kinds, arguments.rounds, clock)
                    for row in block:
                        low, high = row["quartiles"]
                        print(
                            f"| {cell}, {row['layer']} | {shape} {layout} | {precision} | {row['ratio']:.2f} "
                            f"| {low:.2f} to {high:.2f} | {row['of_minima']:.2f} |",
                            flush=True,
                        )
                    rows += [row | {"precision": precision} for row in block]
                    if arguments.output:  # as it goes: a long run that is cut keeps what it has
                        arguments.output.parent.mkdir(parents=True, exist_ok=True)
                        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

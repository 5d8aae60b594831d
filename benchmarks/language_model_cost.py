"""What recurrent dropouts and regularizers cost a recurrent language model, as ratios to the same on torch.nn.LSTM.

    python benchmarks/language_model_cost.py --output results/cost/language_model/ratios.json
    python benchmarks/language_model_cost.py --sizes 1x256 --methods "weight drop" fraternal --rounds 30

A size is layers x width, of embeddings and states alike. A step is that of truncated back-propagation on a window:
forward from the carried state, cross-entropy over the vocabulary, backward, plain SGD, zero_grad. The reference is a
module written here, of torch.nn.Embedding, torch.nn.LSTM and torch.nn.Linear; "none" is `RNNForCausalLM` without any
dropout. Tokens per second are the inverse of the ratio.

In each round every method makes one step on the same window, in an order drawn anew; the table shows the median over
the rounds of its time divided by that of the reference in the same round. With one thread the time is the CPU time of
the process. `--precision medium` is torch.set_float32_matmul_precision("medium").
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from step_cost import Contestant, processor, race
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from hf_rat import Regularization, parse
from hf_rat.models import RNNConfig, RNNForCausalLM
from hf_rat.trainer.fast import draw_masks_fast

REFERENCE = "torch.nn.LSTM"
AWD = {"input": 0.4, "hidden": 0.25, "output": 0.4, "dropconnect": 0.5}
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "plain"),
    "weight drop": ({"dropconnect": 0.5}, "plain"),
    "variational per batch": ({"variational": 0.25, "variational_per": "batch"}, "plain"),
    "variational": ({"variational": 0.25}, "plain"),
    "variational per step": ({"variational": 0.25, "per_step": ["variational"]}, "plain"),
    "recurrent": ({"recurrent": 0.25}, "plain"),
    "recurrent per step": ({"recurrent": 0.25, "per_step": ["recurrent"]}, "plain"),
    "rnndrop": ({"rnndrop": 0.25}, "plain"),
    "zoneout": ({"zoneout": 0.05, "zoneout_cell": 0.5}, "plain"),
    "locked": ({"input": 0.4, "output": 0.4}, "plain"),
    "forward per step": ({"input": 0.2, "output": 0.5, "per_step": ["input", "output"]}, "plain"),
    "AWD-LSTM": (AWD, "plain"),
    "fraternal": (AWD, "fraternal(alpha=0.1)"),
    "adversarial dropout, K = 1": (
        {},
        'adversarial_dropout(site="recurrent", rate=0.06, divergence="js")',
    ),
    "adversarial dropout, K = 1, KL": ({}, 'adversarial_dropout(site="recurrent", rate=0.06)'),
    "adversarial dropout, K = 1, on AWD-LSTM": (
        AWD,
        'adversarial_dropout(site="recurrent", rate=0.06, divergence="js", start_mask="base")',
    ),
}


class Plain(nn.Module):
    """A language model on torch's own layers."""

    def __init__(self, vocabulary: int, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.decoder = nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor, shift_labels: Tensor, state: Any) -> tuple[Tensor, Any]:
        output, (h, c) = self.lstm(self.embedding(input_ids), state)
        loss = F.cross_entropy(self.decoder(output).flatten(0, 1), shift_labels.flatten())
        return loss, (h.detach(), c.detach())


def enlist(name: str, vocabulary: int, layers: int, width: int) -> Contestant:
    torch.manual_seed(0)
    state: Any = None
    if name == REFERENCE:
        model: nn.Module = Plain(vocabulary, layers, width).train()

        def backward(window: Any) -> None:
            nonlocal state
            loss, state = model(**window, state=state)
            loss.backward()
    else:
        rates, expression = METHODS[name]
        if layers == 1:
            rates = {kind: rate for kind, rate in rates.items() if kind != "hidden"}
        config = RNNConfig(
            vocab_size=vocabulary,
            embedding_size=width,
            hidden_size=width,
            num_hidden_layers=layers,
            recurrent_dropouts=rates,
        )
        model = RNNForCausalLM(config).train()
        regularization = Regularization(parse(expression), model, keep=["state"])

        def backward(window: Any) -> None:
            nonlocal state
            regularization.backward({**window, "state": state})
            state = regularization.kept["state"]

    return Contestant(name, model, torch.optim.SGD(model.parameters(), lr=0.1), backward)


def measure(size: str, precision: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One block of the table."""
    layers, width = (int(number) for number in size.split("x"))
    contestants = [enlist(name, arguments.vocabulary, layers, width) for name in (REFERENCE, *arguments.methods)]

    def window() -> dict[str, Tensor]:
        text = torch.randint(1, arguments.vocabulary, (arguments.batch_size, arguments.length + 1))
        return {"input_ids": text[:, :-1], "shift_labels": text[:, 1:].contiguous()}

    for contestant in contestants:
        contestant.step(window())
    race(contestants, arguments.rounds, arguments.threads, window)
    rows = []
    for contestant in contestants:
        ratios = [mine / theirs for mine, theirs in zip(contestant.seconds, contestants[0].seconds, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        rows.append(
            {
                "size": size,
                "precision": precision,
                "method": contestant.name,
                "ratio": median(ratios),
                "quartiles": [low, high],
                "of_minima": min(contestant.seconds) / min(contestants[0].seconds),
                "seconds": contestant.seconds,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a recurrent language model's step relative to torch's LSTM.")
    parser.add_argument("--sizes", nargs="+", default=["1x256", "2x650"], help="layers x width")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--precision", nargs="+", choices=["highest", "medium"], default=["highest", "medium"])
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--length", type=int, default=35)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fast_masks", action="store_true", help="draw masks as --fast does, for every contestant")
    parser.add_argument("--output", type=Path, help="JSON file for every round and the settings")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: quartiles need at least 2")
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    if arguments.fast_masks:
        draw_masks_fast()
    rows: list[dict[str, Any]] = []
    report = {
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "clock": "process time" if arguments.threads == 1 else "wall clock",
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("torch", "transformers")}},
        "processor": processor(),
        "rows": rows,
    }
    print("| method | layers x width | precision | ratio | quartiles | of minima |\n|---|---|---|---|---|---|")
    for size in arguments.sizes:
        for precision in arguments.precision:
            torch.set_float32_matmul_precision(precision)
            block = measure(size, precision, arguments)
            for row in block:
                low, high = row["quartiles"]
                print(
                    f"| {row['method']} | {size} | {precision} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} "
                    f"| {row['of_minima']:.2f} |",
                    flush=True,
                )
            rows += block
            if arguments.output:  # as it goes: a long run that is cut keeps what it has
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

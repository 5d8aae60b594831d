"""What a loss landscape of TextCNN costs beside the plain loop over its points, and how far the surfaces are apart.

    python benchmarks/landscape.py --texts FILE --output results/cost/landscape/textcnn.json

FILE has a text in each line, of which the first --examples are taken; without it, texts of random words are made. Both
ways measure the same rows of a grid of --points x --points, one row after the other, in an order drawn anew. The plain
loop loads, for each point, w + x d_1 + y d_2 into the weights, and runs the model over batches of 32 in the order of
the file, in evaluation mode without gradients. The other is `landscape_rows` over batches of texts of like length; its
start, a look at the first batch, is in the first row's time. Texts are tokenised before; fp32, one thread, CPU time of
the process. With --rows below --points, rows spread evenly stand for the grid.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from step_cost import processor
from torch import Tensor

from hf_rat.analysis.directions import Weights, random_directions
from hf_rat.analysis.landscape import axis, landscape_rows
from hf_rat.models import TextCNNConfig, TextCNNForSequenceClassification

Batches = list[dict[str, Tensor]]


def read(path: Path | None, count: int, vocabulary: int) -> list[list[int]]:
    """The word numbers of each text, from 1; a word beyond the vocabulary shares the number of another."""
    if path is None:
        lengths = torch.distributions.Gamma(9.0, 0.2).sample((count,)).long().clamp(min=3).tolist()
        return [torch.randint(1, vocabulary, (length,)).tolist() for length in lengths]
    texts = path.read_text(encoding="utf-8").splitlines()[:count]
    numbers: dict[str, int] = {}
    return [
        [1 + numbers.setdefault(w, len(numbers)) % (vocabulary - 1) for w in text.lower().split()] for text in texts
    ]


def batch(texts: list[list[int]], labels: Tensor, size: int, order: list[int]) -> Batches:
    found = []
    for start in range(0, len(order), size):
        part = order[start : start + size]
        longest = max(len(texts[i]) for i in part)
        ids = torch.tensor([texts[i] + [0] * (longest - len(texts[i])) for i in part])
        found.append({"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels[part]})
    return found


@torch.no_grad()
def plain_row(model: Any, batches: Batches, directions: list[Weights], xs: list[float], y: float) -> list[float]:
    """The loop as one would write it first."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.eval()
    losses = []
    for x in xs:
        for name, p in model.named_parameters():
            p.copy_(weights[name] + x * directions[0][name] + y * directions[1][name])
        sums = [float(model(**each).loss) * len(each["labels"]) for each in batches]
        losses.append(sum(sums) / sum(len(each["labels"]) for each in batches))
    for name, p in model.named_parameters():
        p.copy_(weights[name])
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a landscape relative to the plain loop.")
    parser.add_argument("--texts", type=Path, help="a text in each line")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--vocabulary", type=int, default=20000)
    parser.add_argument("--points", type=int, default=51)
    parser.add_argument("--rows", type=int, help="default: as many as points")
    parser.add_argument("--batch_size", type=int, default=32, help="of ours")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    texts = read(arguments.texts, arguments.examples, arguments.vocabulary)
    labels = torch.randint(4, (len(texts),))
    config = TextCNNConfig(vocab_size=arguments.vocabulary)
    config.num_labels = 4
    model = TextCNNForSequenceClassification(config).eval()
    sizes = {"embedding": model.config.embedding_size, "filters": model.config.num_filters}
    axis_ = axis(1.0, arguments.points)
    rows = arguments.rows or arguments.points
    numbers = sorted({round(i * (arguments.points - 1) / max(rows - 1, 1)) for i in range(rows)})
    directions = random_directions(model, 2, seed=0)
    in_order = batch(texts, labels, 32, list(range(len(texts))))
    by_length = batch(texts, labels, arguments.batch_size, sorted(range(len(texts)), key=lambda i: len(texts[i])))
    done = set(range(arguments.points)) - set(numbers)
    found: list[dict[str, Any]] = []
    ours = landscape_rows(model, by_length, directions, axis_, axis_, done)
    for number in numbers:
        one: dict[str, Any] = {"row": number}
        for way in random.sample(["plain", "ours"], 2):
            begin = time.process_time()
            if way == "plain":
                losses = plain_row(model, in_order, directions, axis_, axis_[number])
            else:
                row = next(ours)
                losses = row.losses
            one[f"{way}_seconds"], one[f"{way}_losses"] = time.process_time() - begin, losses
        apart = [abs(a - b) for a, b in zip(one["plain_losses"], one["ours_losses"], strict=True)]
        one |= {"ratio": one["ours_seconds"] / one["plain_seconds"], "apart": max(apart)}
        found.append(one)
        print(f"row {number}: {one['plain_seconds']:.1f} s, {one['ours_seconds']:.1f} s, ratio {one['ratio']:.3f}, "
              f"losses {min(one['plain_losses']):.4f} to {max(one['plain_losses']):.4f} apart by {one['apart']:.1e}",
              flush=True)  # fmt: skip
        if arguments.output:
            report = {
                "settings": {
                    name: getattr(arguments, name) for name in ("examples", "vocabulary", "points", "batch_size")
                },
                "texts": "a file" if arguments.texts else "random words",
                "words": {"mean": mean(map(len, texts)), "most": max(map(len, texts))},
                "sizes": sizes,
                "threads": 1,
                "clock": "process time",
                "versions": {"torch": version("torch")},
                "processor": processor(),
                "ratio": sum(r["ours_seconds"] for r in found) / sum(r["plain_seconds"] for r in found),
                "median_ratio": median(r["ratio"] for r in found),
                "apart": max(r["apart"] for r in found),
                "rows": found,
            }
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

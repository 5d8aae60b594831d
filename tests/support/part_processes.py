"""Run by test_part_of_batch.py in two processes of DDP; process 0 writes what they saw to the JSON file it is given.

part_processes.py RESULT.json
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import launches
import torch
import torch.distributed as dist
from tiny import gradients, tiny_batch, tiny_model
from torch.nn.parallel import DistributedDataParallel

from hf_rat import Regularization, parse
from hf_rat.engine.chosen_examples import ChosenExamples


def step(expression: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model = tiny_model()
    regularization = Regularization(parse(expression), DistributedDataParallel(model), length_buckets="off")
    regularization.backward(batch)
    return gradients(model)


def main(output: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    batch = {name: x[2 * rank : 2 * rank + 2] for name, x in tiny_batch().items()}
    torch.manual_seed(0)
    own = Regularization(parse("rat(examples=0.5)"), DistributedDataParallel(tiny_model()))
    chosen = torch.stack([own._chosen.permute(16) for _ in range(2)])
    everyone = [torch.empty_like(chosen) for _ in range(2)]
    dist.all_gather(everyone, chosen)

    whole = step("rat(epsilon=0.5)", batch)
    found = []
    for orders in itertools.product([[0, 1], [1, 0]], repeat=2):
        ChosenExamples.permute = lambda self, size, order=orders[rank]: torch.tensor(order)  # type: ignore[method-assign]
        found.append(step("rat(epsilon=0.5, examples=0.5)", batch))
    mean = {name: torch.stack([one[name] for one in found]).mean(0) for name in whole}
    if rank == 0:
        seen = {
            "choices": [x.tolist() for x in everyone],
            "whole": {name: x.tolist() for name, x in whole.items()},
            "mean": {name: x.tolist() for name, x in mean.items()},
        }
        Path(output).write_text(json.dumps(seen))
    launches.leave()


if __name__ == "__main__":
    main(sys.argv[1])

"""Run by test_top.py in two processes: process 0 writes, to the JSON file it is given, how far gradients are apart."""

from __future__ import annotations

import copy
import json
import sys

import launches
import tiny
import torch
from torch.nn.parallel import DistributedDataParallel

from hf_rat import Regularization

FAMILIES = ("bert", "albert", "deberta_v2")
EXPRESSIONS = ("fgm(top=1/2)", "rat(top=1/2)")


def main() -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    batch, apart = tiny.tiny_batch(8), {}
    half = {name: x[4 * rank : 4 * rank + 4] for name, x in batch.items()}
    for family in FAMILIES:
        for expression in EXPRESSIONS:
            whole = tiny.tiny_model(family)
            model = DistributedDataParallel(copy.deepcopy(whole))
            regularization = Regularization(expression, model)
            for _ in range(2):  # DDP prepares itself in the first step
                model.zero_grad()
                regularization.backward(half)
            Regularization(expression, whole).backward(batch)
            ours, theirs = tiny.gradients(model.module), tiny.gradients(whole)
            apart[f"{family} {expression}"] = max(float((ours[n] - g).abs().max()) for n, g in theirs.items())
    if rank == 0:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump(apart, file)
    launches.leave()


if __name__ == "__main__":
    main()

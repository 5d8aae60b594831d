"""Run by test_engines_sharded.py in two processes, without Accelerate; process 0 writes what they saw to a JSON file.

sharded_processes.py RESULT.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import keyed
import launches
import runs
import tiny
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from two_processes import BadPass

from hf_rat import Regularization, parse
from hf_rat.engine.requirements import require_whole_weights

EVERY = [*(e for e in runs.INVARIANT if "top=" not in e), "fgm(epsilon=0.1, unit='embedding')"]
STEP = 3
"""Every schedule of EVERY has begun."""


def model() -> nn.Module:
    return tiny.tiny_model(dropout=0.1, _attn_implementation="eager")


def sharded() -> nn.Module:
    """FSDP2 by hand: each layer, and the rest."""
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    one = model()
    for layer in one.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(one, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in one.parameters())
    return one


CASES = {"FSDP2": ("FSDP2", False), "FSDP2, single backward": ("FSDP2", True), "DDP": ("DDP", False)}
"""Name -> engine, and whether there is a single backward per micro-batch."""

ENGINES: dict[str, Callable[[], nn.Module]] = {
    "FSDP2": sharded,
    "DDP": lambda: DistributedDataParallel(model(), find_unused_parameters=True),
}


def batches() -> list[dict[str, Tensor]]:
    """Two micro-batches of 8 examples."""
    rows = runs.examples(16)
    return [runs.collate(rows[:8]), runs.collate(rows[8:])]


def begun(own: dict[str, Tensor]) -> dict[str, Tensor]:
    keyed.begin(own["input_ids"], own["attention_mask"])
    return own


def step(one: nn.Module, expression: str, part: slice, single: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Two accumulated micro-batches on this process's part of each: mean losses and gradients."""
    regularization = Regularization(parse(expression), one, single_backward=single, length_buckets="auto")
    seen: dict[str, float] = {}
    parts = [{name: value[part] for name, value in batch.items()} for batch in batches()]
    regularization.begin_step((begun(own) for own in parts), step=STEP)
    for own in map(begun, parts):
        for name, value in regularization.backward(own, step=STEP, accumulation=2).items():
            seen[name] = seen.get(name, 0.0) + value.item() / 2
    regularization.close()
    inside = one.module if isinstance(one, DistributedDataParallel) else one
    gradients = {}
    for name, parameter in inside.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).detach()
    return seen, gradients


def averaged(losses: dict[str, float]) -> dict[str, float]:
    values = torch.tensor([losses[name] for name in sorted(losses)])
    dist.all_reduce(values)
    return dict(zip(sorted(losses), (values / 2).tolist(), strict=True))


@cache
def whole_step(expression: str, single: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The reference: one process on the whole batch."""
    return step(model(), expression, slice(0, 8), single)


def compared(engine: str, single: bool, expression: str) -> dict[str, Any]:
    """One process on the whole batch, and two on half of it each."""
    rank = dist.get_rank()
    try:
        own, gradients = step(ENGINES[engine](), expression, slice(4 * rank, 4 * rank + 4), single)
    except ValueError as error:
        return {"refused": str(error)}
    ours = averaged(own)
    if rank > 0:
        return {}  # what process 0 sees is written
    losses, expected = whole_step(expression, single)
    largest = max(float(g.abs().max()) for g in expected.values())
    apart = {
        name: float((gradients[name] - g).abs().max()) / (float(g.abs().max()) + 1e-3 * largest)
        for name, g in expected.items()
    }
    return {"losses": ours, "expected": losses, "gradients apart": max(apart.values()), "largest": largest}


def moved_by_each_process() -> dict[str, float]:
    """SAM over the micro-batch: DDP's gradients are the mean of those that each process has at its own weights."""
    rank = dist.get_rank()
    halves = [{name: value[part] for name, value in batches()[0].items()} for part in (slice(0, 4), slice(4, 8))]

    def gradients_on(one: nn.Module, half: dict[str, Tensor]) -> dict[str, Tensor]:
        begun(half)
        Regularization(parse("sam(epsilon=0.3)"), one, length_buckets="off").backward(half)
        inside = one.module if isinstance(one, DistributedDataParallel) else one
        return {name: p.grad.clone() for name, p in inside.named_parameters() if p.grad is not None}

    wanted = [gradients_on(model(), half) for half in halves]
    found = gradients_on(ENGINES["DDP"](), halves[rank])
    mean = {name: (wanted[0][name] + wanted[1][name]) / 2 for name in found}
    return {
        "apart": max(float((found[name] - value).abs().max()) for name, value in mean.items()),
        "of each": max(float((wanted[0][name] - wanted[1][name]).abs().max()) for name in found),
    }


def with_a_bad_pass(engine: str) -> dict[str, Any]:
    """The adversarial pass of process 1 is NaN: which losses each process keeps."""
    rank = dist.get_rank()
    one = ENGINES[engine]()
    if rank == 1:
        BadPass(one.module if isinstance(one, DistributedDataParallel) else one, 2)
    own = {name: value[4 * rank : 4 * rank + 4] for name, value in batches()[0].items()}
    regularization = Regularization(parse("rat(epsilon=0.5)"), one, length_buckets="off")
    keyed.begin(own["input_ids"], own["attention_mask"])
    kept: list[Any] = [None, None]
    dist.all_gather_object(kept, sorted(regularization.backward(own)))
    finite = all(p.grad is None or bool(local(p.grad).isfinite().all()) for p in one.parameters())
    return {"kept": kept, "finite": finite, "counted": regularization.nonfinite.steps}


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def lean() -> str:
    try:
        Regularization(parse("rat"), sharded(), memory="lean")
    except ValueError as error:
        return str(error)
    return "accepted"


def whole() -> str | None:
    """Why batches are not split by length."""
    return Regularization(parse("rat"), sharded(), length_buckets="auto").why_not_bucketed


def fsdp1() -> str:
    try:
        Regularization(parse("rat"), FullyShardedDataParallel(model(), device_id=torch.device("cpu")))
    except ValueError as error:
        return str(error)
    return "accepted"


def average() -> str:
    try:
        require_whole_weights("average='ema(0.9)'", sharded())
    except ValueError as error:
        return str(error)
    return "accepted"


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with keyed.noise():
        results = {
            name: {expression: compared(*case, expression) for expression in EVERY} for name, case in CASES.items()
        }
        bad = {engine: with_a_bad_pass(engine) for engine in ENGINES}
        each = moved_by_each_process()
        refused = {"lean": lean(), "FSDP 1": fsdp1(), "average": average()}
        because = whole()
    if dist.get_rank() == 0:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump({"compared": results, "bad": bad, "refused": refused, "whole": because, "each": each}, file)
    launches.leave()


if __name__ == "__main__":
    main()

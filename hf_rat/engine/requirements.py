"""What a model, and the arguments of a run, must be to carry a regularizer."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.training_args import OptimizerNames

from hf_rat.passes.adapters import without_adapters
from hf_rat.passes.problems import require_problem
from hf_rat.passes.sites import is_weights
from hf_rat.passes.sites.geometry import Geometry
from hf_rat.regularizers.averages import average_of
from hf_rat.regularizers.balls import Hamming
from hf_rat.regularizers.perturbations import Redrawn
from hf_rat.regularizers.terms import Proximal, TaskLoss, Term, all_terms, is_plain
from hf_rat.regularizers.weight_terms import Anchored, Distance, NoisyStart

MEMORY = ("fast", "lean")
"""What to do with the activations of several dropout passes: see `Regularization`."""


def require(regularizer: Term, model: nn.Module, wrapped: nn.Module, averages: bool = True) -> None:
    """Refuse a model that the regularizer would be silently wrong on.

    Args:
        regularizer: the term.
        model: without wrappers.
        wrapped: as the loop calls it.
        averages: whether the loop takes the average of the weights that the regularizer may ask for.

    Raises:
        ValueError: a pass has a dropout rate of its own, and activation checkpointing or an attention kernel would not
            obey it; activation checkpointing is reentrant, or would run a perturbed module again; the weights are
            sharded in a way that the regularizer cannot be right under; or the regularizer leaves no loss at all.
    """
    terms = list(all_terms(regularizer))
    if not terms:
        raise ValueError(f"{regularizer!r} leaves no loss to train on: its factor of 0 takes everything away")
    if not averages:
        _warn_of_average(regularizer)
    _require_obeyed_rates(regularizer, terms, model)
    _require_moves_of_one_run(regularizer, terms, model)
    _require_readable_weights(regularizer, terms, model, wrapped)
    if not is_plain(regularizer) and isinstance(wrapped, nn.DataParallel):
        raise ValueError(
            f"{regularizer!r} under nn.DataParallel, whose copies of the model no perturbation reaches; launch one "
            "process per GPU with accelerate launch or torchrun"
        )
    if not is_plain(regularizer) and any(map(_checkpoints_reentrantly, model.modules())):
        raise ValueError(
            f"reentrant activation checkpointing cannot give the slopes that {regularizer!r} needs; enable it with "
            "use_reentrant=False"
        )


def warn_of_no_flips(regularizer: Term, site: str, geometry: Geometry) -> None:
    """Warn of a rate at which not one unit of a mask is ever flipped."""
    for term in all_terms(regularizer):
        ball, units = getattr(term.perturb, "ball", None), geometry.shape[-1]
        if not isinstance(ball, Hamming) or getattr(term.perturb, "site", None) != site:
            continue
        if ball.rate > 0 and ball.flips(units) == 0:
            warnings.warn(
                f"rate={ball.rate} of {units} units is less than one, so that {regularizer!r} flips none of the "
                f"{site}; use a rate of at least 1 / {units} (about {math.ceil(1000 / units) / 1000:g})",
                stacklevel=3,
            )


def require_arguments(regularizer: Term, args: TrainingArguments) -> None:
    """Refuse the arguments of a Trainer under which no regularizer but `plain` can be right.

    Raises:
        ValueError: several GPUs in one process, an optimizer that steps inside the backward, or reentrant activation
            checkpointing. Also for `plain`: FSDP or fp16 on the CPU, and processes that would each train alone.
    """
    _require_company(args)
    if args.device.type == "cpu" and (args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"):
        raise ValueError(
            "FSDP was asked for and the device is the CPU, where Accelerate trains with DDP instead and does not say "
            "so; launch on GPUs or without FSDP"
        )
    if args.device.type == "cpu" and args.mixed_precision == "fp16" and args.deepspeed_plugin is None:
        raise ValueError(
            "fp16 was asked for and the device is the CPU, where Accelerate trains in fp32 instead and does not say "
            "so; use --bf16 or neither"
        )
    if is_plain(regularizer):
        return
    if args.n_gpu > 1:
        raise ValueError(
            f"{regularizer!r} under DataParallel ({args.n_gpu} GPUs in one process): launch one process per GPU "
            "with accelerate launch or torchrun"
        )
    if args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
        raise ValueError(
            f"--optim {OptimizerNames(args.optim).value} updates the weights inside each backward, and "
            f"{regularizer!r} makes several per step; use adamw_torch"
        )
    checkpointing = {
        **(getattr(args, "gradient_checkpointing_kwargs", None) or {}),
        **cast(dict[str, Any], args.activation_checkpointing_kwargs or {}),
    }
    if checkpointing.get("use_reentrant"):
        raise ValueError(
            f"reentrant activation checkpointing cannot give the slopes that {regularizer!r} needs; "
            "leave use_reentrant at False, its default"
        )


def given_problem(problem: str | None, args: TrainingArguments) -> str | None:
    """The kind of task that a Trainer's argument or `reg_problem` says.

    Raises:
        ValueError: it is unknown, or they say two.
    """
    require_problem(problem)
    given = {kind for kind in (problem, getattr(args, "reg_problem", None)) if kind is not None}
    if len(given) > 1:
        raise ValueError(f"both problem= and reg_problem say the kind of task ({', '.join(sorted(given))})")
    return next(iter(given), None)


def _require_company(args: TrainingArguments) -> None:
    """Several processes were asked for: refuse what Accelerate does then on a CPU if it is not told about the CPU."""
    if args.world_size > 1:
        return
    launched = os.environ.get("WORLD_SIZE")
    if launched is not None and int(launched) > 1:
        raise ValueError(
            f"WORLD_SIZE is {launched}, and the Trainer would train in each of these processes alone, as it sees no "
            "GPU; on the CPU add --use_cpu"
        )
    # What `accelerate launch` sets for several processes on the CPU, which it leaves to MPI to start.
    if launched is None and "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU") == "True":
        raise ValueError(
            "accelerate launch was asked for several processes on the CPU and started one, as distributed_type "
            "MULTI_CPU needs MPI; use MULTI_GPU with --use_cpu, as configs/accelerate/ddp_2_processes.yaml does"
        )


def require_memory(memory: str, model: nn.Module, accelerator: Accelerator | None) -> None:
    """Refuse an unknown way with memory, and one that an engine cannot go, on a model without wrappers.

    Raises:
        ValueError: `memory` is none of `MEMORY`, or "lean" under FSDP or DeepSpeed.
    """
    if memory not in MEMORY:
        raise ValueError(f"memory={memory!r} must be one of {', '.join(MEMORY)}")
    deepspeed = accelerator is not None and accelerator.distributed_type == DistributedType.DEEPSPEED
    if memory == "lean" and (deepspeed or any(isinstance(module, FSDPModule) for module in model.modules())):
        raise ValueError(
            f'memory="lean" runs passes again in the backward, which {"DeepSpeed" if deepspeed else "FSDP2"} cannot; '
            'use memory="fast" with activation checkpointing'
        )


def _require_obeyed_rates(regularizer: Term, terms: list[Term], model: nn.Module) -> None:
    changes_rate = any(
        (isinstance(term, TaskLoss) and term.dropouts is not None)
        or (isinstance(term.perturb, Redrawn) and term.perturb.rate is not None)
        for term in terms
    )
    if not changes_rate:
        return
    if getattr(model, "is_activation_checkpointing", False):
        raise ValueError(
            f"{regularizer!r} gives a pass its own dropout rate, and activation checkpointing would recompute it at "
            "another one; switch checkpointing off or use equal rates"
        )
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        raise ValueError(
            f'{regularizer!r} gives a pass its own dropout rate, which attn_implementation="{attention}" does not '
            'obey; use "sdpa" or "eager"'
        )


def _require_moves_of_one_run(regularizer: Term, terms: list[Term], model: nn.Module) -> None:
    """In the backward, activation checkpointing runs the inside of a layer again, where no perturbation enters it."""
    base: nn.Module = without_adapters(model)
    sites = {term.perturb.site for term in terms if term.perturb is not None and term.perturb.site}
    for name, module in base.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            for site in sites:
                if site.startswith(f"{name}."):
                    raise ValueError(
                        f"{regularizer!r} perturbs {site}, and activation checkpointing would run it again without "
                        f"the perturbation; switch checkpointing off or perturb the output of {name}"
                    )


def _require_readable_weights(regularizer: Term, terms: list[Term], model: nn.Module, wrapped: nn.Module) -> None:
    if not is_plain(regularizer) and any(isinstance(m, FullyShardedDataParallel) for m in wrapped.modules()):
        raise ValueError(
            f"{regularizer!r} under FSDP 1, which shows no weights and no embeddings outside its own forward; use "
            "fsdp_version: 2"
        )
    if any(isinstance(term, Proximal) for term in terms):
        require_whole_weights(repr(regularizer), model)
    zero3 = any(hasattr(parameter, "ds_tensor") for parameter in model.parameters())
    sharded = zero3 or any(isinstance(module, FSDPModule) for module in model.modules())
    movers = [term.perturb for term in terms if term.perturb is not None and is_weights(term.perturb.site or "")]
    if any(isinstance(getattr(getattr(at, "ball", None), "radius", None), tuple) for at in movers):
        raise ValueError(
            f"{regularizer!r} has an epsilon for each pass, and all passes at a point have the same weights; give one"
        )
    if sharded and (movers or any(isinstance(term, (Distance, Anchored, NoisyStart)) for term in terms)):
        raise ValueError(
            f"{regularizer!r} reads or moves whole weights, and {'ZeRO-3' if zero3 else 'FSDP2'} shards them over the "
            "processes; use DDP, ZeRO-1 or ZeRO-2"
        )
    balls = [getattr(term.perturb, "ball", None) for term in terms]
    if zero3 and any(getattr(ball, "unit", None) == "embedding" for ball in balls):
        raise ValueError(
            f"{regularizer!r} measures the embedding table, which ZeRO-3 shards over the processes; use "
            'unit="absolute"'
        )


def require_whole_weights(asked: str, model: nn.Module) -> None:
    """Refuse an average of a model that is nowhere whole.

    Args:
        asked: what keeps the average.
        model: with or without wrappers.

    Raises:
        ValueError: with the engine that shards the weights.
    """
    modules = list(model.modules())
    sharding = {
        "ZeRO-3": any(hasattr(parameter, "ds_tensor") for parameter in model.parameters()),
        "FSDP2": any(isinstance(module, FSDPModule) for module in modules),
        "FSDP 1": any(isinstance(module, FullyShardedDataParallel) for module in modules),
    }
    for engine, shards in sharding.items():
        if shards:
            raise ValueError(
                f"{asked} keeps an average of the whole model, and {engine} shards the weights over the processes; "
                "use DDP, ZeRO-1 or ZeRO-2"
            )


def _checkpoints_reentrantly(module: nn.Module) -> bool:
    checkpoint = getattr(module, "_gradient_checkpointing_func", None)
    switched_on = getattr(module, "gradient_checkpointing", False)
    return bool(switched_on and getattr(checkpoint, "keywords", {}).get("use_reentrant"))


def _warn_of_average(regularizer: Term) -> None:
    """Warn of an average of the weights that a regularizer asks for, where only the user's own loop can take it."""
    average = average_of(regularizer)
    if average is not None:
        given = "model" if average.beta is None else f"model, beta={average.beta!r}"
        warnings.warn(
            f"{regularizer!r}: a Trainer evaluates and saves {average!r} of the weights; in a loop of your own "
            f"that is AveragedWeights({given}, runs=False), which the loop updates",
            stacklevel=4,
        )

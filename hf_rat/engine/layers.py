"""A model from its embeddings up to its head: how deep each parameter lies, and what is the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_rat.passes.adapters import without_adapters
from hf_rat.passes.layers import base_of, layers_of


def depths(model: nn.Module, asked: str) -> dict[int, int]:
    """How far down a parameter lies: id -> 0 above the layers, 1 in the last layer, n in the first of n, n + 1 below.

    Below are embeddings, wherever a model keeps them, and what the model defines before its layers.
    """
    layers, base = layers_of(model, asked), base_of(model)
    inside = {id(p): len(layers) - index for index, layer in enumerate(layers) for p in layer.parameters()}
    tables = {id(p) for module in base.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    found = {id(p): 0 for p in model.parameters()}
    below = True
    for parameter in base.parameters():
        below = below and id(parameter) not in inside
        if below or id(parameter) in tables:
            found[id(parameter)] = len(layers) + 1
    return found | inside


def scale_by_layer(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Give each lower layer a learning rate `factor` times that of what is above it; the first group is the highest.

    Args:
        optimizer: of the model and perhaps more, before its first step and its schedule; its groups are split.
        model: without wrappers.
        factor: above 0.
    """
    deep = depths(model, f"layer_decay={factor}")
    groups: list[tuple[int, dict[str, Any]]] = []
    for group in optimizer.param_groups:
        # What is not the model's, a loss with parameters for instance, is above it.
        for depth in sorted({deep.get(id(p), 0) for p in group["params"]}):
            params = [p for p in group["params"] if deep.get(id(p), 0) == depth]
            groups.append((depth, {**group, "params": params, "lr": group["lr"] * factor**depth}))
    groups.sort(key=lambda pair: pair[0])
    optimizer.param_groups[:] = [group for _, group in groups]


def reinit_layers(model: PreTrainedModel, count: int) -> None:
    """Initialise the last `count` layers anew, and the pooler above them, by the model's own `_init_weights`.

    Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning". https://arxiv.org/abs/2006.05987

    Args:
        model: without adapters.
        count: 1 to the number of layers.

    Raises:
        ValueError: the layers cannot be found, or are fewer.
    """
    layers = layers_of(model, f"reinit_layers={count}")
    if not 1 <= count <= len(layers):
        raise ValueError(f"reinit_layers={count} must be 1 to {len(layers)}, the layers of {type(model).__name__}")
    pooler = getattr(base_of(model), "pooler", None)
    anew = [*layers[-count:], *([pooler] if isinstance(pooler, nn.Module) else [])]
    for part in anew:
        for tensor in (*part.parameters(), *part.buffers()):
            tensor._is_hf_initialized = False  # those that were loaded are passed over
        for module in part.modules():
            model._init_weights(module)


def body_of(model: nn.Module, asked: str) -> list[nn.Parameter]:
    """The trained parameters below the head: those of the base model.

    Args:
        model: without wrappers.
        asked: what needs them, for errors.

    Raises:
        ValueError: the model has no base model, or nothing above it is trained.
    """
    base, kind = base_of(model), type(without_adapters(model)).__name__
    body = list(base.parameters())
    inside = set(map(id, body))
    if not any(p.requires_grad and id(p) not in inside for p in model.parameters()):
        raise ValueError(f"{asked}: the head of {kind} cannot be found: nothing above a base model is trained")
    return [parameter for parameter in body if parameter.requires_grad]

"""Random directions through the weights, as long as the weights themselves (Li et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RULES = ("filter", "tensor")
BIASES = ("zero", "move")

Weights = dict[str, Tensor]
"""Name in `model.named_parameters()` -> tensor of the weight's shape."""


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that directions move: those that are trained; tied weights, one tensor, stand there once.

    Raises:
        ValueError: nothing is trained.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
    if not found:
        raise ValueError(f"{type(model).__name__}: no weight is trained, so there is no direction to go in")
    return found


def random_directions(
    model: nn.Module, count: int = 2, seed: int = 0, rule: str = "filter", biases: str = "zero"
) -> list[Weights]:
    """Directions d ~ N(0, 1), drawn one after the other, each part of them as long as the same part of the weights.

    They are independent, and not made orthogonal. Models whose weights have the same names and shapes get the same
    draws; what tells their directions apart is the length of their own weights. Frozen weights stay where they are.

    Args:
        model: whose weights these are.
        count: how many directions.
        seed: of the draws, which are made on the CPU and leave the global generators alone.
        rule: "filter": d_j ||w_j|| / ||d_j|| for each slice j along the first dimension: a filter of a convolution, a
            neuron of a linear layer, a gate's unit, a word's vector (Li et al. 2018). "tensor": the same for each
            weight as a whole, by the Frobenius norm ("layer" in their code).
        biases: of the weights of one dimension (biases, and the gains and shifts of normalisation layers). "zero":
            they do not move, as Li et al. recommend. "move": by the rule, which for "filter" makes +|w_j| or -|w_j| of
            each number.

    Returns:
        For each direction the trained weights' names and tensors, of their shapes, dtypes and devices. A slice of
        zeros (the vector of padding) does not move.

    Raises:
        ValueError: an unknown rule, or nothing is trained.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is none of {', '.join(RULES)}")
    if biases not in BIASES:
        raise ValueError(f"biases={biases!r} is none of {', '.join(BIASES)}")
    generator = torch.Generator().manual_seed(seed)
    weights = trained_weights(model)
    return [
        {
            name: _scaled(torch.randn(w.shape, generator=generator), w.detach(), rule, biases)
            for name, w in weights.items()
        }
        for _ in range(count)
    ]


def _scaled(draw: Tensor, weight: Tensor, rule: str, biases: str) -> Tensor:
    draw = draw.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    if weight.dim() <= 1 and biases == "zero":
        return torch.zeros_like(weight)
    if rule == "tensor" or weight.dim() == 0:
        lengths, own = draw.norm(), weight.to(draw.dtype).norm()
    else:
        inner = tuple(range(1, weight.dim()))
        lengths, own = (_norms(x, inner) for x in (draw, weight.to(draw.dtype)))
    return (draw * (own / lengths.clamp(min=torch.finfo(draw.dtype).tiny))).to(weight.dtype)


def _norms(x: Tensor, inner: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(x, dim=inner, keepdim=True) if inner else x.abs()

"""The layers of a model, found by its config and by what its modules hold."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from hf_rat.passes.adapters import without_adapters


def layers_of(model: nn.Module, asked: str) -> nn.ModuleList:
    """The layers of a model, the lowest first: the list with as many modules of one kind as its config has layers.

    Args:
        model: without wrappers.
        asked: what needs them, for errors.

    Raises:
        ValueError: there is none (a config that does not count layers, layers that share weights as ALBERT's), or
            there are two (encoder and decoder).
    """
    return _list_of(model, _count(model, asked), asked)


def base_of(model: nn.Module) -> nn.Module:
    """The model below its head; without a head, the model itself."""
    bare: nn.Module = without_adapters(model)
    base = getattr(bare, "base_model", bare)
    return base if isinstance(base, nn.Module) else bare


@dataclass(frozen=True)
class Place:
    """A layer, in one of its runs in a forward.

    Args:
        name: as in `model.named_modules()`, without adapters.
        layer: the module.
        run: which of its runs, from 0.
        runs: how many it has in a forward; more than one where layers share their weights.
        share: how much of the model's layers this one and those above it are, in (0, 1].
    """

    name: str
    layer: nn.Module
    run: int
    runs: int
    share: float


def find_place(model: nn.Module, top: float | str) -> Place:
    """The lowest layer of the top of a model.

    Args:
        model: without wrappers.
        top: the share of the layers that are the top, in (0, 1), rounded to at least one layer; or that layer's name.

    Raises:
        ValueError: the layers cannot be found, there are several stacks of them, or none has this name.
    """
    if isinstance(top, str):
        return _named_place(model, top)
    asked, base = f"top={top!r}", base_of(model)
    count, config = _count(model, asked), getattr(base, "config", None)
    groups = getattr(config, "num_hidden_groups", count)  # so many modules, one after the other, are all layers
    layers = _list_of(model, groups, asked)
    above = max(1, round(top * count))
    owners = [layers[layer * groups // count] for layer in range(count)]
    lowest = count - above
    module = owners[lowest]
    name = next(name for name, m in without_adapters(model).named_modules() if m is module)
    run, runs = owners[:lowest].count(module), owners.count(module)
    return Place(name, module, run, runs, above / count)


def outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """(name, list) of the lists of modules of one kind, without those inside of other lists."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) and len(set(map(type, child))) == 1:
            yield prefix + name, child
        else:
            yield from outermost_lists(child, f"{prefix}{name}.")


def _named_place(model: nn.Module, top: str) -> Place:
    bare: nn.Module = without_adapters(model)
    kind, shared = type(bare).__name__, getattr(getattr(bare, "config", None), "num_hidden_groups", None)
    found = {
        f"{stack}.{index}": (layer, 1 - index / len(layers))
        for stack, layers in outermost_lists(bare)
        for index, layer in enumerate(layers)
    }
    if shared is not None:
        raise ValueError(
            f"top={top!r}: the layers of {kind} share their weights, so that a name is several; give a share"
        )
    if not found:
        raise ValueError(f"top={top!r}: {kind} has no stack of layers (a list of modules of one kind)")
    if top not in found:
        near = difflib.get_close_matches(top, found, n=1, cutoff=0.0)[0]
        raise ValueError(f"top={top!r}: {kind} has no layer of this name; the nearest is {near}")
    layer, share = found[top]
    return Place(top, layer, 0, 1, share)


def _count(model: nn.Module, asked: str) -> int:
    """How many layers the config of a model says it has."""
    count = getattr(getattr(base_of(model), "config", None), "num_hidden_layers", None)
    if not isinstance(count, int) or count < 1:
        kind = type(without_adapters(model)).__name__
        raise ValueError(f"{asked}: the layers of {kind} cannot be found: it has no config.num_hidden_layers")
    return count


def _list_of(model: nn.Module, length: int, asked: str) -> nn.ModuleList:
    kind = type(without_adapters(model)).__name__
    found = [(name, layers) for name, layers in outermost_lists(base_of(model)) if len(layers) == length]
    if not found:
        raise ValueError(
            f"{asked}: the layers of {kind} cannot be found: it has no list of {length} modules of one kind (do "
            "layers share their weights?)"
        )
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise ValueError(f"{asked}: the layers of {kind} are several stacks: {names}")
    return found[0][1]

"""The word embeddings of a model that embeds several texts for each example, one column after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rat.passes.sites.base import OutputSite
from hf_rat.passes.sites.embeddings import EmbeddingSite
from hf_rat.passes.sites.geometry import Geometry

_IDS = "_input_ids"


class ColumnsSite(EmbeddingSite):
    """The output of the word embeddings of a SentenceTransformer, over all columns of the batch.

    A batch holds `anchor_input_ids`, `positive_input_ids` and so on. The perturbation of an example is as long as all
    of its columns, (batch, time of the first + time of the second + ..., dim), and one norm is taken over it. The loss
    runs the model over each column once, in their order, or over several of equal padding at once.

    Args:
        model: the SentenceTransformer.

    Raises:
        ValueError: it has no transformer inside.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model.transformers_model, nn.Module):
            raise ValueError(f"{type(model).__name__} holds no transformer whose word embeddings could be perturbed")
        super().__init__(model.transformers_model)
        self._columns: list[Tensor] = []
        self._next = 0

    def table_ids(self, inputs: Mapping[str, Any]) -> None:
        """A column may be padded to the width of another, with words that no look-up here has."""

    def geometry(self, inputs: Mapping[str, Any]) -> Geometry:
        self._columns = self._all(inputs)
        return super().geometry(inputs)

    def ids(self, inputs: Mapping[str, Any]) -> Tensor:
        return torch.cat(self._all(inputs), dim=1)

    def _all(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        columns = [inputs[f"{name}{_IDS}"] for name in self._names(inputs)]
        # A tokenizer makes floats of texts that are all empty.
        return [ids if ids.numel() else ids.long() for ids in columns]

    def mask(self, inputs: Mapping[str, Any], ids: Tensor) -> Tensor | None:
        masks = [inputs.get(f"{name}_attention_mask") for name in self._names(inputs)]
        known = [mask for mask in masks if isinstance(mask, Tensor)]
        return torch.cat(known, dim=1).bool() if len(known) == len(masks) else None

    @contextmanager
    def perturbed(self, move: Tensor | None, replaces: bool = False) -> Iterator[None]:
        self._next = 0
        with super().perturbed(move, replaces):
            yield

    @property
    def unreached(self) -> str:
        return f"the perturbation reached {self._next} of {len(self._columns)} columns. {self._order}"

    @staticmethod
    def _names(inputs: Mapping[str, Any]) -> list[str]:
        names = [name.removesuffix(_IDS) for name in inputs if name.endswith(_IDS)]
        if not names:
            raise ValueError(
                f"the batch has no column of texts (it has {', '.join(inputs)}), whose words could be moved"
            )
        return names

    def _learn_runs(self, inputs: Mapping[str, Any]) -> None:
        """The columns are known by their names."""

    def _first_probe(self, inputs: Mapping[str, Any], ids: Tensor) -> int:
        features = self._features(inputs)[0]
        return super()._first_probe(features, features["input_ids"])

    def _own_of_a_forward(self, inputs: Mapping[str, Any], ids: Tensor) -> Tensor:
        features = self._features(inputs)
        return torch.cat([EmbeddingSite._own_of_a_forward(self, one, one["input_ids"]) for one in features], dim=1)

    def _features(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the transformer inside is given for each column."""
        names, columns = self._names(inputs), self._all(inputs)
        return [
            {"input_ids": ids, "attention_mask": inputs.get(f"{name}_attention_mask")}
            for name, ids in zip(names, columns, strict=True)
        ]

    def _hook(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.move is None or self._probing:
            return OutputSite._hook(self, module, args, output)
        ids = args[0]
        rows, width = ids.shape
        several = self._columns[self._next : self._next + rows // len(self.move)]
        padded = [F.pad(column, (0, width - column.shape[1])) for column in several if column.shape[1] <= width]
        if not padded or len(padded) < len(several) or not torch.equal(torch.cat(padded), ids):
            raise RuntimeError(f"the loss runs the model over other texts than the next column. {self._order}")
        moves = self.move.split([column.shape[1] for column in self._columns], dim=1)
        moves = moves[self._next : self._next + len(several)]
        own = [F.pad(move, (0, 0, 0, width - move.shape[1])) for move in moves]
        self._next += len(several)
        self.fired = self._next == len(self._columns)
        return self._added(torch.cat(own), output)

    @property
    def _order(self) -> str:
        return (
            "A loss must run each column once, in order: not in mini-batches as the cached losses, nor several times"
        )

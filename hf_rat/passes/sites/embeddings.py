"""The output of the word embeddings: where most perturbations enter a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.sites.base import OutputSite
from hf_rat.passes.sites.geometry import Geometry
from hf_rat.passes.sites.word_vectors import look_up, mean_norm

EMBEDDINGS = "embeddings"


class EmbeddingSite(OutputSite):
    """The output of the word embeddings, before position embeddings, normalisation and dropout.

    The choices of a multiple choice are one example: its perturbation is as long as all of them, (batch, choices *
    time, dim), and one norm is taken over it. So are the texts of a model that runs the embeddings for several inputs,
    one after the other, (batch, time of the first + time of the second + ..., dim).

    Args:
        model: the unwrapped model. Its encoder's embeddings are taken when it is an encoder-decoder.

    Raises:
        ValueError: the model has no input embeddings; (at the first batch) they run several times, and not for inputs
            of the batch.
        RuntimeError: (at the first pass) they run more often than in one forward of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, *self._find(model))
        self._texts: list[str] = []
        self._expected = 1
        self._taken = 0
        self._width: int | None = None
        self._norm: float | None = None

    def _find(self, model: nn.Module) -> tuple[nn.Module, int]:
        """The module, and which of its runs in a forward is meant."""
        # get_input_embeddings() of BART and T5 classifiers names a module that never runs.
        return input_embeddings(model, model.get_encoder() if has_two_sides(model) else model), 0  # type: ignore

    def table_ids(self, inputs: Mapping[str, Any]) -> Tensor | None:
        if self._texts or not (isinstance(self.module, nn.Embedding) and self.module.weight.requires_grad):
            return None
        return self.ids(inputs).flatten(1)

    def geometry(self, inputs: Mapping[str, Any]) -> Geometry:
        """The geometry of a batch. The first call looks at the model to learn its batch axis and the width."""
        if self._width is None:
            self._learn_runs(inputs)
            self._width = self._first_probe(inputs, self.ids(inputs))
        ids = self.ids(inputs)
        mask = self.mask(inputs, ids)
        ids = ids.flatten(1)
        return Geometry(
            shape=(*ids.shape, self._width),
            device=ids.device,
            mask=None if mask is None else mask.flatten(1),
            ids=ids,
            padding_idx=getattr(self.module, "padding_idx", None),
            embedding_norm=self.embedding_norm,
            own=partial(self._own, inputs),
        )

    def ids(self, inputs: Mapping[str, Any]) -> Tensor:
        """What is looked up, (batch, time) or (batch, choices, time)."""
        if self._texts:
            return torch.cat([inputs[name] for name in self._texts], dim=1)
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise ValueError(
                f"the batch has no input_ids (it has {', '.join(inputs)}): perturbing the embeddings needs them; "
                'where there are none, name a module as the site, for instance site="vit.embeddings"'
            )
        return ids if ids.numel() else ids.long()  # a tokenizer makes floats of texts that are all empty

    def mask(self, inputs: Mapping[str, Any], ids: Tensor) -> Tensor | None:
        """True on tokens, shaped as `ids`; None if nothing tells."""
        if self._texts:
            texts = [(inputs[name], inputs.get(name.replace("input_ids", "attention_mask"))) for name in self._texts]
            known = [mask_of(mask if mask is not text else None, text) for text, mask in texts]
            own = [torch.ones_like(text).bool() if m is None else m for (text, _), m in zip(texts, known, strict=True)]
            return None if all(m is None for m in known) else torch.cat(own, dim=1)
        return mask_of(inputs.get("attention_mask"), ids)

    def _own(self, inputs: Mapping[str, Any]) -> Tensor:
        """The word vectors of a batch in evaluation, (batch, time, dim) as a perturbation of it."""
        ids = self.ids(inputs)
        found = look_up(self.module, ids)
        if found is None:
            found = self._own_of_a_forward(inputs, ids)
        return found.reshape(*ids.flatten(1).shape, -1)

    def _own_of_a_forward(self, inputs: Mapping[str, Any], ids: Tensor) -> Tensor:
        """The same by a look at the model, whose module does more than look up."""
        found = self.runs(inputs, ids)[: len(self._texts)] if self._texts else [self.probe(inputs, ids)]
        outputs = [seen[1].transpose(0, 1) if self._time_first else seen[1] for seen in found if seen is not None]
        time = None if self._texts else ids.shape[-1]  # the model may pad its ids itself
        return torch.cat([output[:, :time] for output in outputs], dim=1)

    @property
    def embedding_norm(self) -> float | None:
        """Mean L2 norm of the embeddings of all tokens when it was first asked for; training keeps this length.

        None where it cannot be told: a table that FSDP2 shards, in a module that does more than look up.
        """
        if self._norm is None:
            self._norm = mean_norm(self.module)
        return self._norm

    @embedding_norm.setter
    def embedding_norm(self, value: float | None) -> None:
        self._norm = value

    def _learn_runs(self, inputs: Mapping[str, Any]) -> None:
        """Learn for which inputs the embeddings run in a forward of the model, if several of them may be texts."""
        if has_two_sides(self.model):
            sides = (self.model.get_encoder(), self.model.get_decoder())  # type: ignore[operator]
            self._expected = 3 - len({input_embeddings(self.model, side) for side in sides})
            return
        tensors = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.dim() == 2}
        if not tensors or [name for name in tensors if "input_ids" in name] == ["input_ids"]:
            return
        ran = self.runs(inputs, next(iter(tensors.values())))
        self._expected = max(1, len(ran))
        if len(ran) < 2:
            return
        names = [
            next((name for name, x in tensors.items() if isinstance(ids, Tensor) and torch.equal(x, ids)), None)
            for ids, _ in ran
        ]
        # Inputs that are equal in the first batch need not be so in the next.
        for k, name in enumerate(names):
            if name is not None and name in names[:k]:
                names[k] = next(
                    (n for n, x in tensors.items() if n not in names and torch.equal(x, tensors[name])), name
                )
        if None in names:
            raise ValueError(
                f"the {type(self.module).__name__} of {type(self.model).__name__} runs {len(ran)} times in a forward, "
                f"and not each time for an input of the batch ({', '.join(inputs)}): only one run could be perturbed; "
                "name a module that runs once as the site"
            )
        self._texts = [name for name in names if name is not None]

    @contextmanager
    def perturbed(self, move: Tensor | None, replaces: bool = False) -> Iterator[None]:
        self._taken = 0
        with super().perturbed(move, replaces):
            yield

    @property
    def unreached(self) -> str:
        if self._texts and self._runs:
            return (
                f"the perturbation reached {self._runs} of the {len(self._texts)} texts that "
                f"{type(self.model).__name__} embeds ({', '.join(self._texts)}); run all of them in each pass"
            )
        return super().unreached

    def _hook(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.move is None or self._probing:
            return super()._hook(module, args, output)
        if self._runs >= self._expected:
            raise RuntimeError(
                f"the {type(module).__name__} of {type(self.model).__name__} runs more often in a pass than in one "
                f"forward of the model ({self._expected}), and only the first would be perturbed; run the model once "
                "in the loss (rdrop and rat make the passes that they compare themselves)"
            )
        if not self._texts:
            self._looked_up_ids = args[0] if args else None
            return super()._hook(module, args, output)
        # The move is as long as all texts, and each run takes its own part of it.
        self._runs += 1
        axis = 0 if self._time_first else 1
        width = (output[0] if isinstance(output, tuple) else output).shape[axis]
        part = self.move[:, self._taken : self._taken + width]
        self._taken += width
        self.fired = self._runs == self._expected and self._taken == self.move.shape[1]
        return self._added(part.transpose(0, 1) if self._time_first else part, output)

    def _added(self, move: Tensor, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        axis = 0 if self._time_first else 1
        if not self._time_first and len(first) > len(move):  # the choices of a multiple choice
            move = move.reshape(len(first), -1, move.shape[-1])
        time = move.shape[axis]
        # The model pads its ids itself, to a multiple of its attention window for instance.
        if move.dim() == first.dim() and first.shape[axis] > time and not self._texts:
            self._require_padding(self._looked_up_ids, time)
            rest = first.narrow(axis, time, first.shape[axis] - time)
            move = torch.cat([move, rest if self._replaces else torch.zeros_like(rest, dtype=move.dtype)], axis)
        return super()._added(move, output)

    def _require_padding(self, ids: Any, time: int) -> None:
        """Refuse to move what a model looks up behind, before or between the tokens, if that is not padding."""
        if isinstance(ids, Tensor) and (ids[time:] if self._time_first else ids[:, time:]).unique().numel() == 1:
            return
        raise ValueError(
            f"{type(self.model).__name__} looks up more ids than the {time} of the batch, and more than padding on "
            "the right: let the collator pad to the length that it wants (pad_to_multiple_of=), with "
            'length_buckets="off"'
        )

    def _first_probe(self, inputs: Mapping[str, Any], ids: Tensor) -> int:
        """Learn whether the embeddings run at all, where their batch axis is, and their width."""
        if self._texts:
            ids = inputs[self._texts[0]]
        found = self.probe(inputs, ids)
        if found is None:
            raise ValueError(
                f"{type(self.model).__name__} does not run the {type(self.module).__name__} that "
                "get_input_embeddings() names, so its embeddings cannot be perturbed"
            )
        seen, output = found
        ids = ids.flatten(0, -2)  # a model runs the choices of a multiple choice as examples
        time = ids.shape[1]
        longer = isinstance(seen, Tensor) and seen.dim() == 2 and seen.shape[1] > time
        if longer and output.shape[:-1] == seen.shape and torch.equal(seen[:, :time], ids):
            self._require_padding(seen, time)
            ids = seen
        batch_first = output.shape[:-1] == ids.shape
        time_first = output.shape[:-1] == ids.T.shape
        if batch_first and time_first and seen is not None:  # as many examples as tokens: only the ids can tell
            batch_first = bool((seen == ids).all())
        if not (batch_first or time_first):
            raise ValueError(
                f"the embeddings of {type(self.model).__name__} have shape {tuple(output.shape)}, which is neither "
                f"(batch, time, dim) nor (time, batch, dim) for input_ids of shape {tuple(ids.shape)}; if the model "
                'pads them, let the collator do it (pad_to_multiple_of=, and length_buckets="off")'
            )
        self._time_first = not batch_first
        return int(output.shape[-1])


def has_two_sides(model: nn.Module) -> bool:
    """Whether it is an encoder-decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def mask_of(attention: Any, ids: Tensor) -> Tensor | None:
    """An attention mask as bool, if it is one of these ids."""
    return attention.bool() if isinstance(attention, Tensor) and attention.shape == ids.shape else None


def input_embeddings(model: nn.Module, side: nn.Module) -> nn.Module:
    """The module that looks up the words of one side of a model; a ValueError if it has none."""
    try:
        module = side.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        module = None
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{type(model).__name__} has no input embeddings (get_input_embeddings() names none), "
            "so there is nothing for an embedding perturbation to move; name the module whose output it moves, "
            f'site="{_largest_table(model)}"'
        )
    return module


def _largest_table(model: nn.Module) -> str:
    """The name of the largest look-up table of a model, by which one may find the right module."""
    tables = {
        name: module.num_embeddings for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    }
    return max(tables, key=tables.__getitem__, default="<its name>")

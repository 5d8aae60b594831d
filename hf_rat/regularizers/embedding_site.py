"""The output of the word embeddings: where most perturbations enter a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_rat.regularizers.dropout import RandomState
from hf_rat.regularizers.places import Place
from hf_rat.regularizers.problems import IGNORED
from hf_rat.regularizers.site import OutputSite

EMBEDDINGS = "embeddings"
DECODER_EMBEDDINGS = "decoder_embeddings"


class EmbeddingSite(OutputSite):
    """The output of the word embeddings, before position embeddings, normalisation and dropout.

    The choices of a multiple choice are one example: its perturbation is as long as all of them, (batch, choices *
    time, dim), and one norm is taken over it.

    Args:
        model: the unwrapped model. Its encoder's embeddings are taken when it is an encoder-decoder.

    Raises:
        ValueError: the model has no input embeddings.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, *self._find(model))
        self._width: int | None = None
        self._norm: float | None = None

    def _find(self, model: nn.Module) -> tuple[nn.Module, int]:
        """The module, and which of its runs in a forward is meant."""
        # get_input_embeddings() of BART and T5 classifiers names a module that never runs.
        return _input_embeddings(model, model.get_encoder() if _has_two_sides(model) else model), 0  # type: ignore

    def looked_up(self, inputs: Mapping[str, Any]) -> Tensor | None:
        if not (isinstance(self.module, nn.Embedding) and self.module.weight.requires_grad):
            return None
        ids = self.ids(inputs).flatten(1)
        before = RandomState(ids.device)
        found: Tensor = self.module(ids)
        if RandomState(ids.device) == before:
            return found
        # Word dropout, or the Trainer's NEFTune: every run of the module puts out something else.
        before.restore()
        return None

    def owed(self, inputs: Mapping[str, Any], slope: Tensor) -> Tensor:
        """A scalar of value zero whose backward gives the embeddings the gradient `slope` that a pass withheld.

        The table's gradient is as large as the table. Withheld in the clean pass and given back together with the last
        one, it does not take up memory while the adversarial passes hold their activations.
        """
        product = (self.module(self.ids(inputs).flatten(1)).float() * slope).sum().nan_to_num(0.0, 0.0, 0.0)
        return product - product.detach()

    def place(self, inputs: Mapping[str, Any]) -> Place:
        """The geometry of a batch. The first call looks at the model to learn its batch axis and the width."""
        ids = self.ids(inputs)
        if self._width is None:
            self._width = self._first_look(inputs, ids)
        mask = self.mask(inputs, ids)
        ids = ids.flatten(1)
        return Place(
            shape=(*ids.shape, self._width),
            device=ids.device,
            mask=None if mask is None else mask.flatten(1),
            ids=ids,
            padding_idx=getattr(self.module, "padding_idx", None),
            embedding_norm=self.embedding_norm,
        )

    def ids(self, inputs: Mapping[str, Any]) -> Tensor:
        """What is looked up, (batch, time) or (batch, choices, time)."""
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise ValueError(
                f"the batch has no input_ids (it has {', '.join(inputs)}): perturbing the embeddings needs them; "
                'where there are none, name a module as the site, for instance site="vit.embeddings"'
            )
        return ids if ids.numel() else ids.long()  # a tokenizer makes floats of texts that are all empty

    def mask(self, inputs: Mapping[str, Any], ids: Tensor) -> Tensor | None:
        """True on tokens, shaped as `ids`; None if nothing tells."""
        return _mask(inputs.get("attention_mask"), ids)

    @property
    def embedding_norm(self) -> float | None:
        """Mean L2 norm of the embeddings of all tokens when it was first asked for; training keeps this length.

        None where it cannot be told: a table that FSDP2 shards, in a module that does more than look up.
        """
        if self._norm is None:
            self._norm = _mean_norm(self.module)
        return self._norm

    @embedding_norm.setter
    def embedding_norm(self, value: float | None) -> None:
        self._norm = value

    def _first_look(self, inputs: Mapping[str, Any], ids: Tensor) -> int:
        """Learn whether the embeddings run at all, where their batch axis is, and their width."""
        found = self.look(inputs, ids)
        if found is None:
            raise ValueError(
                f"{type(self.model).__name__} does not run the {type(self.module).__name__} that "
                "get_input_embeddings() names, so its embeddings cannot be perturbed"
            )
        seen, output = found
        ids = ids.flatten(0, -2)  # a model runs the choices of a multiple choice as examples
        batch_first = output.shape[:-1] == ids.shape
        time_first = output.shape[:-1] == ids.T.shape
        if batch_first and time_first and seen is not None:  # as many examples as tokens: only the ids can tell
            batch_first = bool((seen == ids).all())
        if not (batch_first or time_first):
            raise ValueError(
                f"the embeddings of {type(self.model).__name__} have shape {tuple(output.shape)}, which is neither "
                f"(batch, time, dim) nor (time, batch, dim) for input_ids of shape {tuple(ids.shape)}"
            )
        self._time_first = not batch_first
        return int(output.shape[-1])


class DecoderEmbeddingSite(EmbeddingSite):
    """The output of the decoder's word embeddings in an encoder-decoder.

    The decoder's ids are the batch's `decoder_input_ids`, or what the model makes of the `labels`. Padding is told by
    `decoder_attention_mask`, or begins where no later position is scored.

    Args:
        model: the unwrapped model.

    Raises:
        ValueError: the model is no encoder-decoder; (at the first batch) it makes its decoder's ids in another way.
    """

    def _find(self, model: nn.Module) -> tuple[nn.Module, int]:
        if not _has_two_sides(model):
            raise ValueError(
                f'{type(model).__name__} is not an encoder-decoder: site="{DECODER_EMBEDDINGS}" is nowhere in it; '
                f'leave site at "{EMBEDDINGS}"'
            )
        encoders, _ = super()._find(model)
        module = _input_embeddings(model, model.get_decoder())  # type: ignore[operator]
        return module, 1 if module is encoders else 0  # one module for both sides runs for the encoder first

    def ids(self, inputs: Mapping[str, Any]) -> Tensor:
        ids, labels = inputs.get("decoder_input_ids"), inputs.get("labels")
        if isinstance(ids, Tensor):
            return ids
        shifted = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if shifted is None or not (isinstance(labels, Tensor) and labels.dim() == 2) or labels.is_floating_point():
            raise ValueError(
                f"the batch has no decoder_input_ids, and {type(self.model).__name__} does not make them of labels: "
                f'site="{DECODER_EMBEDDINGS}" needs them'
            )
        made: Tensor = shifted(labels=labels)
        return made

    def mask(self, inputs: Mapping[str, Any], ids: Tensor) -> Tensor | None:
        labels, given = inputs.get("labels"), _mask(inputs.get("decoder_attention_mask"), ids)
        if given is None and isinstance(labels, Tensor) and labels.shape == ids.shape:
            return (labels != IGNORED).flip(1).int().cummax(1).values.flip(1).bool()
        return given

    def _first_look(self, inputs: Mapping[str, Any], ids: Tensor) -> int:
        width = super()._first_look(inputs, ids)
        seen, _ = self.look(inputs, ids) or (None, None)
        if not (isinstance(seen, Tensor) and torch.equal(seen.view(ids.shape), ids)):
            raise ValueError(
                f"{type(self.model).__name__} looks up other ids in its decoder than those it prepares from labels; "
                "put decoder_input_ids into the batch"
            )
        return width


def _has_two_sides(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _mask(attention: Any, ids: Tensor) -> Tensor | None:
    return attention.bool() if isinstance(attention, Tensor) and attention.shape == ids.shape else None


def _mean_norm(module: nn.Module) -> float | None:
    """Of what the module puts out for all its tokens: some scale or normalise the rows of their table."""
    table = getattr(module, "weight", None)
    if table is None:
        return 1.0
    with torch.no_grad():
        if type(module).forward is nn.Embedding.forward:
            mean = table.float().norm(dim=-1).mean()
            return float(mean.full_tensor() if isinstance(mean, DTensor) else mean)
        if isinstance(table, DTensor):
            return None
        ids = torch.arange(len(table), device=table.device)
        training = module.training
        try:
            module.eval()  # no word dropout
            return float(torch.cat([module.forward(some).float().norm(dim=-1) for some in ids.split(1024)]).mean())
        finally:
            module.train(training)


def _input_embeddings(model: nn.Module, side: nn.Module) -> nn.Module:
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

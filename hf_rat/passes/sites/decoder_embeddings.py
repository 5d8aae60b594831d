"""The output of the decoder's word embeddings in an encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.problems import IGNORED
from hf_rat.passes.sites.embeddings import EMBEDDINGS, EmbeddingSite, has_two_sides, input_embeddings, mask_of

DECODER_EMBEDDINGS = "decoder_embeddings"


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
        if not has_two_sides(model):
            raise ValueError(
                f'{type(model).__name__} is not an encoder-decoder: site="{DECODER_EMBEDDINGS}" is nowhere in it; '
                f'leave site at "{EMBEDDINGS}"'
            )
        encoders, _ = super()._find(model)
        module = input_embeddings(model, model.get_decoder())  # type: ignore[operator]
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
        labels, given = inputs.get("labels"), mask_of(inputs.get("decoder_attention_mask"), ids)
        if given is None and isinstance(labels, Tensor) and labels.shape == ids.shape:
            return (labels != IGNORED).flip(1).int().cummax(1).values.flip(1).bool()
        return given

    def _first_probe(self, inputs: Mapping[str, Any], ids: Tensor) -> int:
        width = super()._first_probe(inputs, ids)
        seen, _ = self.probe(inputs, ids) or (None, None)
        if not (isinstance(seen, Tensor) and torch.equal(seen.view(ids.shape), ids)):
            raise ValueError(
                f"{type(self.model).__name__} looks up other ids in its decoder than those it prepares from labels; "
                "put decoder_input_ids into the batch"
            )
        return width

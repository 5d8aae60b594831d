"""What the models on word embeddings share. It travels with a checkpoint beside flat siblings."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_words import WordConfig
from .embedding import WordEmbedding


class WordModel(PreTrainedModel):
    """Reading words, and how all weights begin: vectors N(0, initializer_range), the others as torch's layers do.

    The model itself or its base model has an attribute `embeddings`, made by `word_embedding`. Vectors copied into its
    weight after construction are saved and loaded as any weight; only what a checkpoint lacks is initialised.
    """

    config: WordConfig
    accepts_loss_kwargs = False  # the loss is a mean over the batch
    _input_embed_layer = "embeddings"  # where get_input_embeddings and set_input_embeddings look

    def __init__(self, config: WordConfig) -> None:
        super().__init__(config)
        config.check()
        self.num_labels = cast(int, config.num_labels)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The functions of `init` leave loaded weights alone, and so do those of torch.nn.init while Transformers calls
        # this; what writes to a slice must ask.
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.padding_idx is not None and is_fresh(module.weight):
                module.weight[module.padding_idx] = 0.0
            if isinstance(module, WordEmbedding) and module.normalized:
                init.constant_(module.frequencies, 1.0 / module.num_embeddings)
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.RNNBase)):
            module.reset_parameters()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if isinstance(embeddings, WordEmbedding) and embeddings.normalized:
            # A new word was never seen in the training texts.
            missing = embeddings.num_embeddings - embeddings.frequencies.numel()
            embeddings.frequencies = F.pad(embeddings.frequencies, (0, missing))
        return embeddings

    def embed(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The words' vectors (batch, time, embedding_size) and which of them are valid (batch, time), bool.

        Args:
            input_ids: (batch, time); or inputs_embeds, (batch, time, embedding_size).
            attention_mask: (batch, time), 1 where a word is valid. Default: everywhere.

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds, or wrong shapes.
        """
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"input_ids and inputs_embeds: {given} was given, expected one")
        if input_ids is not None:
            if input_ids.numel() == 0:
                input_ids = input_ids.long()  # a tokenizer makes floats of texts that are all empty
            inputs_embeds = self.get_input_embeddings()(input_ids)
        assert inputs_embeds is not None
        if attention_mask is None:
            attention_mask = inputs_embeds.new_ones(inputs_embeds.shape[:2])
        if attention_mask.shape != inputs_embeds.shape[:2]:
            wanted = tuple(inputs_embeds.shape[:2])
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, expected (batch, time) {wanted}"
            )
        return inputs_embeds, attention_mask.bool()

    def loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """The loss of the configuration's problem type; None without labels.

        Args:
            logits: (batch, num_labels).
            labels: (batch,) classes or numbers, or (batch, num_labels) floats.
        """
        if labels is None:
            return None
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)


def word_embedding(config: WordConfig) -> WordEmbedding:
    """The embeddings that a configuration describes."""
    return WordEmbedding(
        config.vocab_size,
        config.embedding_size,
        config.pad_token_id,
        dropout=config.embedding_dropout,
        dropout_per=config.embedding_dropout_per,
        normalized=config.normalize_embeddings,
    )


def is_fresh(weight: Tensor) -> bool:
    """Whether a weight was not loaded; Transformers flags those that were."""
    return not getattr(weight, "_is_hf_initialized", False)

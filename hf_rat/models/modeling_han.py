"""A bidirectional GRU with attention over words, and another one over sentences if asked for (Yang et al. 2016).

It travels with a checkpoint beside flat siblings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_han import HANConfig
from .modeling_words import WordModel, word_embedding
from .padding import to_front
from .pooling import Attention
from .recurrent import GRU


class _Level(nn.Module):
    """Bidirectional GRU and attention: many vectors in, one out."""

    def __init__(self, size: int, config: HANConfig) -> None:
        super().__init__()
        self.encoder = GRU(size, config.hidden_size, dropout=config.recurrent_dropouts, bidirectional=True)
        self.attention = Attention(2 * config.hidden_size, config.attention_size)

    def forward(self, x: Tensor, front: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, size), front (batch, time) as by `to_front` -> (batch, 2 * hidden), weights (batch, time)."""
        hidden, _ = self.encoder(x, lengths=front.sum(1))
        return self.attention(hidden, front)


class HANForSequenceClassification(WordModel):
    """Bidirectional GRU, masked attention, dropout, and a linear layer; with `sentence_level` two levels of the first.

    A sentence ends with the word `sentence_separator_token_id`, which belongs to it, or with the text. Where padding
    lies changes nothing: before, after or among the words. A text without a word pools to zero.
    """

    config_class = HANConfig
    config: HANConfig

    def __init__(self, config: HANConfig) -> None:
        super().__init__(config)
        self.embeddings = word_embedding(config)
        self.words = _Level(config.embedding_size, config)
        self.sentences = _Level(2 * config.hidden_size, config) if config.sentence_level else None
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(2 * config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits (batch, num_labels) and, with labels, the loss of the configuration's problem type.

        Args:
            input_ids: (batch, time); or inputs_embeds, (batch, time, embedding_size), with sentence_level beside
                input_ids, which then only say where sentences end.
            attention_mask: (batch, time), 1 where a word is valid. Default: everywhere.
            labels: (batch,) classes or numbers, or (batch, num_labels) floats.
            output_attentions: return the attention of the words, (batch, time), zero at padding; with sentence_level
                that of each word in its sentence, and then that of the sentences, (batch, sentences).
            kwargs: what a tokenizer makes for other models (token types, ...); nothing here depends on it.

        Raises:
            ValueError: inputs that are missing or of wrong shapes.
        """
        if self.sentences is not None and input_ids is None:
            raise ValueError(
                "inputs_embeds alone with sentence_level=True: input_ids say where sentences end, pass both"
            )
        given = None if self.sentences is not None and inputs_embeds is not None else input_ids
        x, mask = self.embed(given, attention_mask, inputs_embeds)
        x, front = to_front(x, mask)
        attentions: tuple[Tensor, ...]
        if self.sentences is None:
            pooled, weights = self.words(x, front)
            attentions = (_at(mask, weights[front]),)
        else:
            assert input_ids is not None
            pooled, attentions = self._by_sentence(self.sentences, x, front, input_ids, mask)
        logits = self.classifier(self.dropout(pooled))
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        return SequenceClassifierOutput(
            loss=self.loss(logits, labels), logits=logits, attentions=attentions if output_attentions else None
        )

    def _by_sentence(
        self, level: _Level, x: Tensor, front: Tensor, input_ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Both levels: the pooled text (batch, 2 * hidden) and the attentions of words and sentences."""
        if not bool(front.any()):
            # Zeros, but through both levels: slopes are asked for, and DDP waits for the gradients of all weights.
            pooled, _ = level(self.words(x, front)[0].unsqueeze(1), front[:, :1])
            return pooled, (x.new_zeros(mask.shape), x.new_zeros(x.size(0), 0))
        ids = to_front(input_ids.unsqueeze(-1), mask)[0].squeeze(-1)
        following = nn.functional.pad(front[:, 1:], (0, 1))
        ends = front & ((ids == self.config.sentence_separator_token_id) | ~following)
        last = ends[front].nonzero().squeeze(1)
        sentences, valid = _stacked(x.flatten(0, 1)[front.flatten()], last.diff(prepend=last.new_tensor([-1])))
        vectors, word_weights = self.words(sentences, valid)
        texts, there = _stacked(vectors, ends.sum(1))
        pooled, sentence_weights = level(texts, there)
        return pooled, (_at(mask, word_weights[valid]), sentence_weights)


def _stacked(rows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Cut rows (n, d) into runs of the given sizes: (runs, longest, d), zero at padding, and their mask."""
    stacked = pad_sequence(list(rows.split(sizes.tolist())), batch_first=True)
    return stacked, torch.arange(stacked.size(1), device=rows.device) < sizes.unsqueeze(1)


def _at(mask: Tensor, values: Tensor) -> Tensor:
    """Put values (n,) to the n places of mask (batch, time) in their order, zero elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)

"""Word embeddings with word dropout and Miyato's normalisation. On torch alone: it travels with a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DROPOUT_PER = ("batch", "example")


class WordEmbedding(nn.Embedding):
    """`torch.nn.Embedding` with word dropout; its output is what embedding perturbations move.

    Args:
        num_embeddings: size of the vocabulary.
        embedding_dim: width of a vector.
        padding_idx: the row of padding, kept at zero.
        dropout: rate at which words are dropped, kept words / (1 - p); test: identity.
        dropout_per: "batch" drops a word everywhere in a forward (Merity et al. 2018: .1), "example" draws anew for
            each example, its repetitions together (Gal & Ghahramani 2016).
        normalized: look the words up in (E - mean) / deviation, mean and deviation over the vocabulary weighted by
            `frequencies` (Miyato et al. 2017: without it a trained table outgrows epsilon).

    Attributes:
        frequencies: (num_embeddings,) share of each word in the training texts; uniform until it is set. A buffer,
            there with `normalized` only.

    Raises:
        ValueError: a rate outside [0, 1), or an unknown `dropout_per`.
    """

    frequencies: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dropout: float = 0.0,
        dropout_per: str = "batch",
        normalized: bool = False,
        **torch_options: Any,
    ) -> None:
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"word dropout={dropout!r} is not a rate in [0, 1)")
        if dropout_per not in DROPOUT_PER:
            raise ValueError(f"word dropout_per={dropout_per!r} is none of {', '.join(DROPOUT_PER)}")
        super().__init__(num_embeddings, embedding_dim, padding_idx, **torch_options)
        self.dropout, self.dropout_per, self.normalized = dropout, dropout_per, normalized
        if normalized:
            self.register_buffer("frequencies", torch.full((num_embeddings,), 1.0 / num_embeddings))

    def table(self) -> Tensor:
        """The vectors as they are looked up, (num_embeddings, embedding_dim); a zero row stays padding's."""
        if not self.normalized:
            return self.weight
        share = (self.frequencies / self.frequencies.sum()).unsqueeze(1).to(self.weight.dtype)
        centred = self.weight - (share * self.weight).sum(0)
        table = centred * (share * centred.square()).sum(0).clamp(min=1e-12).rsqrt()
        if self.padding_idx is not None:
            keep = torch.ones_like(share)
            keep[self.padding_idx] = 0.0
            table = table * keep
        return table

    def forward(self, input: Tensor) -> Tensor:
        """(batch, time) ids -> (batch, time, embedding_dim)."""
        vectors = F.embedding(input, self.table(), self.padding_idx)
        if not (self.training and self.dropout):
            return vectors
        if self.dropout_per == "batch":
            mask = F.dropout(vectors.new_ones(self.num_embeddings), self.dropout)[input]
        else:
            words = F.dropout(vectors.new_ones(input.size(0), self.num_embeddings), self.dropout)
            mask = words.gather(1, input.reshape(input.size(0), -1)).view(input.shape)
        return vectors * mask.unsqueeze(-1)

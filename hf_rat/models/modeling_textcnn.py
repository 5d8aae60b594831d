"""Convolutions over word embeddings, the largest answer of each filter, a linear layer (Kim 2014).

It travels with a checkpoint beside flat siblings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_textcnn import TextCNNConfig
from .modeling_words import WordModel, word_embedding
from .padding import to_front


class _LargestAnswer(torch.autograd.Function):
    """max_t sum_j W_j x_{t+j} for each example and filter.

    One window of each example and filter has a gradient, so the backward sums over these windows alone, where that of
    a convolution multiplies all of them by almost nothing but zeros. On a CPU a convolution whose channels lie last is
    also the quicker one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, windows: Tensor) -> Tensor:
        """x (batch, time, d), weight (filters, d, width), windows (batch,): how many count -> (batch, filters)."""
        largest, place = _answers(x, weight, windows).max(2)
        ctx.save_for_backward(x, weight, place)
        return largest

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, place = ctx.saved_tensors
        (batch, time, _), (filters, _, width) = x.shape, weight.shape
        slope = slope.to(x.dtype)
        rows = x.reshape(batch * time, -1)
        start = place + torch.arange(0, batch * time, time, device=x.device).unsqueeze(1)
        d_x = d_weight = None
        if ctx.needs_input_grad[1]:
            # A bag of windows for each filter: one of each example.
            bags, shares = start.t().contiguous(), slope.t().contiguous()
            parts = [F.embedding_bag(bags + j, rows, per_sample_weights=shares, mode="sum") for j in range(width)]
            d_weight = torch.stack(parts, 2)
        if ctx.needs_input_grad[0]:
            # A bag of filters for each word: those whose window starts there.
            start, order = start.flatten().sort()
            begin = torch.searchsorted(start, torch.arange(batch * time, device=x.device))
            shares, bag = slope.flatten()[order], order % filters
            d_x = torch.zeros_like(rows)
            for j in range(width):
                part = weight[:, :, j].contiguous()
                found = F.embedding_bag(bag, part, begin, per_sample_weights=shares, mode="sum")
                d_x[j:] += found[: batch * time - j]
            d_x = d_x.view_as(x)
        return d_x, d_weight, None


def _answers(x: Tensor, weight: Tensor, windows: Tensor) -> Tensor:
    """Of each filter at each window, (batch, filters, windows); those that do not count are -inf."""
    answers = F.conv2d(x.transpose(1, 2).unsqueeze(2), weight.unsqueeze(2)).squeeze(2)
    beyond = torch.arange(answers.size(2), device=x.device) >= windows.unsqueeze(1)
    return answers.masked_fill_(beyond.unsqueeze(1), -torch.inf)


class LargestConvolution(nn.Conv1d):
    """`torch.nn.Conv1d` followed by the maximum over time, of the windows that touch no padding."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, time, in_channels), zero after the `lengths` (batch,) valid steps -> (batch, out_channels).

        An example shorter than the kernel is padded by zeros to one window.
        """
        width = self.kernel_size[0]
        if x.size(1) < width:
            x = F.pad(x, (0, 0, 0, width - x.size(1)))
        windows = (lengths - width + 1).clamp(min=1)
        if torch.is_grad_enabled():
            largest = _LargestAnswer.apply(x, self.weight, windows)
        else:  # without the places, which only a backward needs, a maximum takes a tenth of the time
            largest = _answers(x, self.weight, windows).amax(2)
        return largest if self.bias is None else largest + self.bias


class TextCNNForSequenceClassification(WordModel):
    """Convolutions over word embeddings, ReLU, maximum over time, dropout, and a linear layer.

    Where padding lies changes nothing: before, after or among the words. Windows that touch padding do not count, but
    a text shorter than a window, be it empty, is padded by zeros to one.
    """

    config_class = TextCNNConfig
    config: TextCNNConfig

    def __init__(self, config: TextCNNConfig) -> None:
        super().__init__(config)
        self.embeddings = word_embedding(config)
        self.convolutions = nn.ModuleList(
            LargestConvolution(config.embedding_size, config.num_filters, width) for width in config.kernel_sizes
        )
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.num_filters * len(config.kernel_sizes), self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits (batch, num_labels) and, with labels, the loss of the configuration's problem type.

        Args:
            input_ids: (batch, time); or inputs_embeds, (batch, time, embedding_size).
            attention_mask: (batch, time), 1 where a word is valid. Default: everywhere.
            labels: (batch,) classes or numbers, or (batch, num_labels) floats.
            kwargs: what a tokenizer makes for other models (token types, ...); nothing here depends on it.
        """
        x, front = to_front(*self.embed(input_ids, attention_mask, inputs_embeds))
        lengths = front.sum(1)
        features = torch.cat([convolution(x, lengths).relu() for convolution in self.convolutions], 1)
        logits = self.classifier(self.dropout(features))
        return SequenceClassifierOutput(loss=self.loss(logits, labels), logits=logits)

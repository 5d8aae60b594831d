"""Recurrent encoders and classifiers as Transformers models. They travel with a checkpoint beside flat siblings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_rnn import RNNConfig
from .modeling_words import WordModel, is_fresh, word_embedding
from .padding import beside_neighbours, permute_steps, valid_first
from .pooling import Attention, max_over, mean_over
from .recurrent import GRU, LSTM, RNN
from .recurrent_dropouts import FORWARD, Dropouts, drop_between, drop_forward

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
AROUND_LAYERS = (*FORWARD, "layers")

LayerState = Tensor | tuple[Tensor, Tensor]
"""(directions, batch, hidden); of an LSTM a pair, h and c."""


@dataclass
class RNNModelOutput(ModelOutput):
    """What `RNNModel` returns.

    Attributes:
        last_hidden_state: (batch, time, directions * hidden), after `output` dropout; zero at padding.
        state: for each layer its state after each example's last valid step.
        hidden_states: the embeddings and the output of each layer, all before dropout; zero at padding.
    """

    last_hidden_state: Tensor | None = None
    state: tuple[LayerState, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class RNNPreTrainedModel(WordModel):
    """What the recurrent models share beside words: biases begin at zero, those of forget gates at `forget_bias`."""

    config_class = RNNConfig
    config: RNNConfig
    base_model_prefix = "rnn"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        forget, spread = self.config.forget_bias, self.config.initializer_range
        words = [module] if isinstance(module, nn.Embedding) else []
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)
        elif isinstance(module, LSTM) and forget is not None:
            for name, bias in module.named_parameters(recurse=False):
                if name.startswith("bias") and is_fresh(bias):
                    bias[module.hidden_size : 2 * module.hidden_size] = forget if "_ih_" in name else 0.0
        if self.config.initializer == "uniform_all":
            for weight in module.parameters(recurse=False):
                init.uniform_(weight, -spread, spread)
        elif self.config.initializer == "uniform" and module in (*words, self.get_output_embeddings()):
            init.uniform_(cast(Tensor, module.weight), -spread, spread)
        for table in words:
            if table.padding_idx is not None and is_fresh(table.weight):
                table.weight[table.padding_idx] = 0.0


class RNNModel(RNNPreTrainedModel):
    """Word embeddings, beside those of the kinds of words and of their neighbours, and stacked recurrent layers.

    Where padding lies changes nothing: before, after or among the valid steps. The layers are one-layer modules of
    recurrent.py. `dropouts` holds the rates around them (input, hidden, layers, output), each layer's own `dropouts`
    those inside; all may be changed between forwards.
    """

    def __init__(self, config: RNNConfig) -> None:
        super().__init__(config)
        self.embeddings = word_embedding(config)
        kinds = config.type_vocab_size
        self.type_embeddings = nn.Embedding(kinds, config.type_embedding_size) if kinds else None
        rates = config.recurrent_dropouts
        around = {name: rate for name, rate in rates.items() if name in (*AROUND_LAYERS, "per_step")}
        self.dropouts = Dropouts.of(around)
        inside = {name: rate for name, rate in rates.items() if name not in AROUND_LAYERS}
        own: dict[str, dict[str, Any]] = {
            "rnn": {"nonlinearity": config.nonlinearity},
            "gru": {"reset_after": config.reset_after},
        }
        options: dict[str, Any] = {
            "dropout": inside,
            "bidirectional": config.bidirectional,
            **own.get(config.cell, {}),
        }
        directions = 2 if config.bidirectional else 1
        widths = [config.input_size, *(directions * size for size in config.layer_sizes)]
        self.layers = nn.ModuleList(
            CELLS[config.cell](width, size, **options) for width, size in zip(widths, config.layer_sizes, strict=False)
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: tuple[LayerState, ...] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        token_type_ids: Tensor | None = None,
        truncated_bptt: int | None = None,
        **kwargs: Any,
    ) -> RNNModelOutput:
        """Run the layers.

        Args:
            input_ids: (batch, time); or inputs_embeds, (batch, time, embedding_size).
            attention_mask: (batch, time), 1 where a step is valid. Default: everywhere.
            state: for each layer the state to start from, as returned. Default: zeros.
            use_cache: return the state. Default: as the configuration says, which is yes.
            output_hidden_states: return what every layer gives out.
            token_type_ids: (batch, time), the kind of each word; needed with `type_vocab_size`, ignored without.
            truncated_bptt: gradients flow through this many last valid steps of each example only. Masks of recurrent
                dropout (not those of `input`, `output` and of words) are drawn for the steps before them, and drawn
                anew for them, as for each window of a language model. Default: through all steps.

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds, no token_type_ids, or wrong shapes.
        """
        x, mask = self.embed(input_ids, attention_mask, inputs_embeds)
        words = x
        if self.type_embeddings is not None:
            if token_type_ids is None:
                raise ValueError(
                    f"token_type_ids is needed: the kind of each word, below {self.config.type_vocab_size}"
                )
            x = torch.cat([x, self.type_embeddings(token_type_ids.long()).to(x.dtype)], -1)
        if state is not None and len(state) != len(self.layers):
            raise ValueError(f"state has {len(state)} entries, expected one for each of {len(self.layers)} layers")
        steps = x.size(1)
        if steps == 0:
            # All texts are empty: the layers read one step of padding, which is taken off again.
            x, mask = F.pad(x, (0, 0, 0, 1)), F.pad(mask, (0, 1))
            words = F.pad(words, (0, 0, 0, 1))
        order, lengths = (None, None) if attention_mask is None and steps else valid_first(mask)
        back = None if order is None else order.argsort(1)
        x = beside_neighbours(permute_steps(x, order), self.config.window, lengths)
        x = drop_forward(x, self.dropouts, "input", self.training)
        if truncated_bptt is not None and (self.training or torch.is_grad_enabled()):
            given_out, last = self._run_truncated(x, state, lengths, truncated_bptt)
        else:
            given_out, last = self._run_layers(x, state, lengths)
        seen = [permute_steps(words, order), *given_out]
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if use_cache is None:
            use_cache = self.config.use_cache
        outputs = [drop_forward(seen[-1], self.dropouts, "output", self.training)]
        outputs += seen if output_hidden_states else []
        outputs = [permute_steps(each, back) for each in outputs]
        if steps == 0:
            outputs = [each[:, :0] for each in outputs]
        return RNNModelOutput(
            last_hidden_state=outputs[0],
            state=tuple(last) if use_cache else None,
            hidden_states=tuple(outputs[1:]) if output_hidden_states else None,
        )

    def _run_layers(
        self, x: Tensor, state: Sequence[LayerState] | None, lengths: Tensor | None
    ) -> tuple[list[Tensor], list[LayerState]]:
        """What each layer gives out, (batch, time, width), and its state after each example's last step."""
        seen, last = [], []
        for depth, layer in enumerate(self.layers):
            if depth:
                x = x.tanh() if self.config.between == "tanh" else x
                x = drop_between(x, self.dropouts, self.training)
            x, after = layer(x, None if state is None else state[depth], lengths=lengths)
            seen.append(x)
            last.append(after)
        return seen, last

    def _run_truncated(
        self, x: Tensor, state: Sequence[LayerState] | None, lengths: Tensor | None, steps: int
    ) -> tuple[list[Tensor], list[LayerState]]:
        """The same, with a gradient through the last `steps` valid steps of each example only."""
        batch, time = x.shape[:2]
        ends = torch.full((batch,), time, device=x.device) if lengths is None else lengths
        early = (ends - steps).clamp(min=0)  # steps of each example that have no gradient
        most = int(early.max())
        if most == 0:
            return self._run_layers(x, state, lengths)
        with torch.no_grad():
            before, state = self._run_layers(x[:, :most], state, early)
        tail = permute_steps(x, early.unsqueeze(1) + torch.arange(steps, device=x.device))
        after, last = self._run_layers(tail, state, ends - early)
        # Back in the order of time. Behind the last step, where both give out zeros, stands a step of zeros.
        now, early = torch.arange(time, device=x.device), early.unsqueeze(1)
        places = torch.where(now < early, now, most + (now - early).clamp(max=steps))
        both = (torch.cat([one, F.pad(two, (0, 0, 0, 1))], 1) for one, two in zip(before, after, strict=True))
        return [permute_steps(each, places) for each in both], last


class RNNForSequenceClassification(RNNPreTrainedModel):
    """Pooling over the valid steps, a ReLU layer if the configuration has one, dropout, and a linear layer.

    An example without a valid step pools to zero.
    """

    def __init__(self, config: RNNConfig) -> None:
        super().__init__(config)
        self.rnn = RNNModel(config)
        self.attention = Attention(config.output_size) if config.pooling == "attention" else None
        units = config.classifier_hidden_size
        self.hidden = nn.Linear(config.output_size, units) if units is not None else None
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(units or config.output_size, self.num_labels)
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

        See `RNNModel` for the inputs. labels: (batch,) classes or numbers, or (batch, num_labels) floats.
        """
        given = kwargs | {"truncated_bptt": self.config.truncated_bptt, "return_dict": True}
        outputs = self.rnn(input_ids, attention_mask, inputs_embeds, **given)
        hidden = outputs.last_hidden_state
        mask = (hidden.new_ones(hidden.shape[:2]) if attention_mask is None else attention_mask).bool()
        if hidden.size(1) == 0:
            hidden, mask = F.pad(hidden, (0, 0, 0, 1)), F.pad(mask, (0, 1))
        pooled = self._pool(hidden, mask)
        if self.hidden is not None:
            pooled = self.hidden(pooled).relu()
        logits = self.classifier(self.dropout(pooled))
        loss = self.loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _pool(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, time, width) and (batch, time) bool -> (batch, width)."""
        if self.config.pooling == "mean":
            return mean_over(x, mask)
        if self.config.pooling == "max":
            return max_over(x, mask)
        if self.attention is not None:
            return self.attention(x, mask)[0]
        # The state after the last step: there the forward half is at its end; the backward half is at the first one.
        # Padding is zero, so any step serves where none is valid.
        rows = torch.arange(x.size(0), device=x.device)
        last = x[rows, mask.size(1) - 1 - mask.flip(1).byte().argmax(1)]
        if not self.config.bidirectional:
            return last
        size = x.size(2) // 2
        return torch.cat([last[:, :size], x[rows, mask.byte().argmax(1), size:]], 1)


class RNNForTokenClassification(RNNPreTrainedModel):
    """Dropout and a linear layer at each step. The loss is a mean over the steps that have a label."""

    def __init__(self, config: RNNConfig) -> None:
        super().__init__(config)
        self.rnn = RNNModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.output_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Logits (batch, time, num_labels) and, with labels (batch, time), -100 where there is none, the loss.

        See `RNNModel` for the inputs.
        """
        given = kwargs | {"token_type_ids": token_type_ids, "return_dict": True}
        outputs = self.rnn(input_ids, attention_mask, inputs_embeds, **given)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config)
            loss = torch.where((labels != -100).any(), loss, 0.0)  # no step with a label: a mean of nothing
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

"""The recurrent causal language model, AWD-LSTM with the right configuration. It travels with a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .configuration_rnn import RNNConfig
from .modeling_rnn import LayerState, RNNModel, RNNModelOutput, RNNPreTrainedModel
from .next_token_loss import next_token_loss
from .padding import permute_steps, valid_first


class RecurrentState(tuple):
    """For each layer its state, detached. generate() takes it for a cache and asks whether it can take tokens back."""

    is_croppable = False


@dataclass
class RNNCausalLMOutput(ModelOutput):
    """What `RNNForCausalLM` returns.

    Attributes:
        loss: mean cross-entropy of the next tokens, in training with AR, TAR and prediction regularisation.
        logits: (batch, time, vocab_size).
        state: for each layer its state after each example's last valid step, (directions, batch, hidden), of an LSTM a
            pair, h and c. Detached: it starts the next chunk of truncated backpropagation as it is.
        hidden_states: the embeddings and the output of each layer, before dropout.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: tuple[LayerState, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


def _each(state: tuple[LayerState, ...], change: Any) -> RecurrentState:
    """Every tensor of a state, changed."""
    return RecurrentState(change(s) if isinstance(s, Tensor) else tuple(map(change, s)) for s in state)


class RNNForCausalLM(RNNPreTrainedModel, GenerationMixin):
    """Next-token logits by a linear layer, tied to the embeddings if the configuration says so.

    generate() carries the recurrent state from step to step; beam search reorders it, assisted generation is refused
    (a recurrent state cannot take tokens back). Prompts are padded on the left.

    Raises:
        ValueError: a bidirectional configuration, one with windows or kinds of words, or tied weights of two widths.
    """

    _tied_weights_keys = {"lm_head.weight": "rnn.embeddings.weight"}  # noqa: RUF012
    _is_stateful = True
    accepts_loss_kwargs = True  # num_items_in_batch

    def __init__(self, config: RNNConfig) -> None:
        super().__init__(config)
        if config.bidirectional:
            raise ValueError("bidirectional=True would show a causal language model the future; expected False")
        if config.window > 1 or config.type_vocab_size:
            raise ValueError(
                f"window={config.window}, type_vocab_size={config.type_vocab_size}: a causal language model reads no "
                "words to come and no kinds of words; expected 1 and 0"
            )
        if config.tie_word_embeddings and config.output_size != config.embedding_size:
            raise ValueError(
                f"tie_word_embeddings=True needs last_hidden_size={config.embedding_size}, the embedding's width; the "
                f"last layer is {config.output_size} wide"
            )
        self.rnn = RNNModel(config)
        self.lm_head = nn.Linear(config.output_size, config.vocab_size)
        self.loss_function = next_token_loss
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        state: tuple[LayerState, ...] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> RNNCausalLMOutput:
        """Logits and, with labels, the loss. See `RNNModel` for the inputs.

        Args:
            labels: (batch, time) tokens, shifted here; -100 where there is none. As in Transformers' causal models,
                every label that is not -100 counts, whatever attention_mask says: whoever pads labels puts -100 there,
                as DataCollatorForLanguageModeling does.
            logits_to_keep: logits of this many last steps only, or of the steps with these indices. Default 0: all.
            num_items_in_batch: the loss is a sum over this batch divided by this number (the predicted tokens of all
                batches of a step); the penalties are weighted by this batch's share. Default: a mean over the batch.
            kwargs: shift_labels, (batch, time), may take the place of labels: the token after each step, so that the
                last step of a chunk predicts the first token of the next one.
        """
        temporal = self.training and self.config.temporal_activation_regularization > 0
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.rnn(
            input_ids,
            attention_mask,
            inputs_embeds,
            state=state,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states or temporal,
            return_dict=True,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        # Not in the signature, where the Trainer would take it for labels that every batch must have.
        shift_labels = kwargs.pop("shift_labels", None)
        if labels is not None or shift_labels is not None:
            if shift_labels is None:
                assert labels is not None
                shift_labels = F.pad(labels, (0, 1), value=-100)[:, 1:]
            shift_labels = shift_labels[:, kept].contiguous()
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                shift_labels=shift_labels,
                num_items_in_batch=num_items_in_batch,
                **kwargs,
            )
            loss = torch.where((shift_labels != -100).any(), loss, 0.0)  # nothing to predict: a mean of nothing
            if self.training:
                penalty = self._penalty(outputs, attention_mask, logits, shift_labels)
                if num_items_in_batch is not None:
                    penalty = penalty * (shift_labels != -100).sum() / num_items_in_batch
                loss = loss + penalty
        return RNNCausalLMOutput(
            loss=loss,
            logits=logits,
            state=None if outputs.state is None else _each(outputs.state, Tensor.detach),
            hidden_states=outputs.hidden_states if output_hidden_states else None,
        )

    def _penalty(
        self, outputs: RNNModelOutput, mask: Tensor | None, logits: Tensor, targets: Tensor
    ) -> Tensor | float:
        """AR, TAR and prediction regularisation.

        Mean squares of the last outputs after dropout and of their change before it, over valid steps, and of the
        logits, over steps that predict something.
        """
        alpha, beta = self.config.activation_regularization, self.config.temporal_activation_regularization
        assert outputs.last_hidden_state is not None
        last = outputs.last_hidden_state.float()
        valid = last.new_ones(last.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        penalty: Tensor | float = 0.0
        if alpha:
            # Padding is zero there.
            penalty = alpha * last.square().sum() / (valid.sum() * last.size(2)).clamp(min=1)
        if beta:
            assert outputs.hidden_states is not None
            order, _ = valid_first(valid)
            raw = permute_steps(outputs.hidden_states[-1].float(), order)
            valid = valid if order is None else valid.gather(1, order)
            change = (raw[:, 1:] - raw[:, :-1]) * valid[:, 1:, None]
            penalty = penalty + beta * change.square().sum() / (valid[:, 1:].sum() * raw.size(2)).clamp(min=1)
        if gamma := self.config.prediction_regularization:
            predicts = (targets != -100).unsqueeze(-1)
            squares = torch.where(predicts, logits.float().square(), 0.0)
            penalty = penalty + gamma * squares.sum() / (predicts.sum() * logits.size(-1)).clamp(min=1)
        return penalty

    # --- generation ----------------------------------------------------------------------------------------------

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        next_sequence_length: int | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The new tokens only, unless use_cache=False; the mask of what is passed."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if attention_mask is not None:
            passed = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
            inputs["attention_mask"] = attention_mask[:, -passed.size(1) :]
        return inputs

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> Any:  # type: ignore[override]
        # transformers repeats tensors only; a state from the caller is a tuple of them.
        ids, expanded = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)  # type: ignore[misc]
        if expanded.get("state") is not None:
            expanded["state"] = _each(expanded["state"], lambda s: s.repeat_interleave(expand_size, 1))
        return ids, expanded

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        # From transformers 5.24 on only what is called "cache" is carried to the next step.
        if "state" in outputs:
            model_kwargs["state"] = outputs["state"]
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def _reorder_cache(self, state: tuple[LayerState, ...] | None, beam_idx: Tensor) -> RecurrentState | None:
        """The state of the beams that go on."""
        return None if state is None else _each(state, lambda s: s.index_select(1, beam_idx.to(s.device)))

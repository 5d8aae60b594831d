"""Companion models and the recurrent layers that they stand on; importing them lets the Auto classes find them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_han import HANConfig
from .configuration_rnn import RNNConfig
from .configuration_textcnn import TextCNNConfig
from .modeling_han import HANForSequenceClassification
from .modeling_rnn import RNNForSequenceClassification, RNNForTokenClassification, RNNModel
from .modeling_rnn_lm import RNNForCausalLM
from .modeling_textcnn import TextCNNForSequenceClassification
from .recurrent import GRU, LSTM, RNN
from .recurrent_dropouts import Dropouts


class Companion(NamedTuple):
    """A companion model: all that Transformers and the command line must know of it."""

    config: type[PreTrainedConfig]
    models: Mapping[Any, type[PreTrainedModel]]
    """Auto class -> the model that it finds."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """Fields of the configuration that make it what its name says."""
    width: str = "hidden_size"
    """The field of the configuration that `--hidden_size` sets."""


_RNN = {
    AutoModel: RNNModel,
    AutoModelForSequenceClassification: RNNForSequenceClassification,
    AutoModelForTokenClassification: RNNForTokenClassification,
    AutoModelForCausalLM: RNNForCausalLM,
}
COMPANIONS = {
    "textcnn": Companion(
        TextCNNConfig, {AutoModelForSequenceClassification: TextCNNForSequenceClassification}, width="num_filters"
    ),
    "texthan": Companion(HANConfig, {AutoModelForSequenceClassification: HANForSequenceClassification}),
    "bilstm": Companion(RNNConfig, _RNN, {"cell": "lstm", "bidirectional": True}),
    "lstm": Companion(RNNConfig, _RNN, {"cell": "lstm"}),
    "gru": Companion(RNNConfig, _RNN, {"cell": "gru"}),
    "rnn": Companion(RNNConfig, _RNN, {"cell": "rnn"}),
}
"""The name of `--model` -> the model: the one list of companion models."""

for _companion in COMPANIONS.values():
    AutoConfig.register(_companion.config.model_type, _companion.config, exist_ok=True)
    # What is saved or pushed takes its code along, so that it loads where hf-rat is not installed.
    _companion.config.register_for_auto_class()
    for _auto, _model in _companion.models.items():
        _auto.register(_companion.config, _model, exist_ok=True)
        _model.register_for_auto_class(_auto.__name__)

__all__ = [
    "COMPANIONS",
    "GRU",
    "LSTM",
    "RNN",
    "Companion",
    "Dropouts",
    "HANConfig",
    "HANForSequenceClassification",
    "RNNConfig",
    "RNNForCausalLM",
    "RNNForSequenceClassification",
    "RNNForTokenClassification",
    "RNNModel",
    "TextCNNConfig",
    "TextCNNForSequenceClassification",
]

"""Companion models and the recurrent layers that they stand on; importing them lets the Auto classes find them."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_han import HANConfig
from .configuration_rnn import RNNConfig
from .configuration_textcnn import TextCNNConfig
from .modeling_han import HANForSequenceClassification
from .modeling_rnn import RNNForSequenceClassification, RNNForTokenClassification, RNNModel
from .modeling_rnn_lm import RNNForCausalLM
from .modeling_textcnn import TextCNNForSequenceClassification
from .recurrent import GRU, LSTM, RNN, Dropouts

MODELS = (
    (TextCNNConfig, AutoModelForSequenceClassification, TextCNNForSequenceClassification),
    (HANConfig, AutoModelForSequenceClassification, HANForSequenceClassification),
    (RNNConfig, AutoModel, RNNModel),
    (RNNConfig, AutoModelForSequenceClassification, RNNForSequenceClassification),
    (RNNConfig, AutoModelForTokenClassification, RNNForTokenClassification),
    (RNNConfig, AutoModelForCausalLM, RNNForCausalLM),
)
"""(configuration, Auto class, model), one line for each model."""

for _config, _auto, _model in MODELS:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    _auto.register(_config, _model)
    # What is saved or pushed takes its code along, so that it loads where hf-rat is not installed.
    _config.register_for_auto_class()
    _model.register_for_auto_class(_auto.__name__)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
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

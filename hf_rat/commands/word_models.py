"""A companion model from scratch: tokenizer and vocabulary from the training texts, vectors, configuration."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_rat.commands.finetune import say
from hf_rat.commands.flags import Flags
from hf_rat.commands.models import number_labels
from hf_rat.commands.word_flags import WordModelArguments
from hf_rat.data.encoding import Labels, require_texts
from hf_rat.data.tasks import Task
from hf_rat.data.vectors import load_vectors
from hf_rat.data.vocabulary import segment, word_tokenizer
from hf_rat.models import (
    HANConfig,
    HANForSequenceClassification,
    RNNConfig,
    RNNForSequenceClassification,
    TextCNNConfig,
    TextCNNForSequenceClassification,
)

# name of --model -> configuration, model, fields of the configuration that make it what its name says
_MODELS: dict[str, tuple[Any, type[PreTrainedModel], dict[str, Any]]] = {
    "textcnn": (TextCNNConfig, TextCNNForSequenceClassification, {}),
    "texthan": (HANConfig, HANForSequenceClassification, {}),
    "bilstm": (RNNConfig, RNNForSequenceClassification, {"cell": "lstm", "bidirectional": True}),
    "lstm": (RNNConfig, RNNForSequenceClassification, {"cell": "lstm"}),
    "gru": (RNNConfig, RNNForSequenceClassification, {"cell": "gru"}),
    "rnn": (RNNConfig, RNNForSequenceClassification, {"cell": "rnn"}),
}
# flag -> what the configurations call it
_FIELDS = {"textcnn": {"hidden_size": "num_filters"}}


def build_word_model(
    flags: Flags, words: WordModelArguments, task: Task, labels: Labels, rows: DatasetDict
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]:
    """The model, its tokenizer, and the labels.

    Args:
        flags: lengths and `--dropout`, which is the rate before the classifier here.
        words: which model, on which words.
        task: names the text columns.
        labels: of the data set.
        rows: the training split among them gives the vocabulary.

    Raises:
        ValueError: a flag that the model has no use for, or a value outside its range.
    """
    if task.train is None or task.train not in rows:
        raise ValueError("--model needs --do_train: its vocabulary comes from the training texts")
    tokenizer, counts = _vocabulary(flags, words, task, rows)
    config_class, model_class, fixed = _MODELS[words.model or "textcnn"]
    config = config_class(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1 if labels.regression else len(labels.names),
        **fixed,
        **_settings(flags, words, config_class),
    )
    labels = number_labels(config, labels)
    model: Any = model_class(config)
    if words.normalize_embeddings:
        model.get_input_embeddings().frequencies.copy_(torch.from_numpy(np.maximum(counts, 1)))
    if words.word_vectors is not None:
        special = set(tokenizer.all_special_ids)
        vocabulary = {word: row for word, row in tokenizer.get_vocab().items() if row not in special}
        found = load_vectors(words.word_vectors, vocabulary, words.embedding_size, counts)
        found.copy_into(model.get_input_embeddings().weight)
        model.get_input_embeddings().weight.requires_grad_(not words.freeze_word_vectors)
        say(f"--word_vectors {words.word_vectors!r}: {found}")
    say(f"{model_class.__name__}: {len(tokenizer)} words, {model.num_parameters() / 1e6:.1f} million parameters")
    return model, tokenizer, labels


def _settings(flags: Flags, words: WordModelArguments, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """What the flags say, as fields of the configuration."""
    name = words.model or "textcnn"
    asked: dict[str, Any] = {
        "hidden_size": words.hidden_size,
        "num_hidden_layers": words.num_hidden_layers,
        "pooling": words.pooling,
        "recurrent_dropouts": words.recurrent_dropouts() or None,
    }
    flag_of = {"recurrent_dropouts": "dropout_kind"}
    settings: dict[str, Any] = {
        "embedding_size": words.embedding_size,
        "embedding_dropout": words.embedding_dropout,
        "normalize_embeddings": words.normalize_embeddings,
    }
    known = config_class().to_dict()
    for field, value in asked.items():
        if value is None:
            continue
        field_name = _FIELDS.get(name, {}).get(field, field)
        if field_name not in known:
            raise ValueError(f"--{flag_of.get(field, field)} {value!r}: --model {name} has no use for it")
        settings[field_name] = value
    if flags.model.dropout is not None:
        settings["classifier_dropout"] = flags.model.dropout
    return settings


def _vocabulary(
    flags: Flags, words: WordModelArguments, task: Task, rows: DatasetDict
) -> tuple[PreTrainedTokenizerBase, np.ndarray]:
    assert task.train is not None
    require_texts(rows[task.train], task.text_columns, f"task {task.name!r}, split {task.train}")
    kind = words.vocabulary or ("characters" if task.script == "chinese" else "words")

    texts: Iterable[str] = chain.from_iterable(rows[task.train][column] for column in task.text_columns)
    return word_tokenizer(
        segment(texts) if kind == "jieba" else texts,
        kind=kind,
        min_count=words.min_count,
        max_size=words.max_vocabulary,
        lowercase=words.lowercase,
        max_length=flags.data.max_seq_length,
    )

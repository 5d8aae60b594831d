"""A companion model from scratch: tokenizer and vocabulary from the training texts, vectors, configuration."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_rat.data.encoding import Labels, require_texts
from hf_rat.data.tagged import joined
from hf_rat.data.task import Task
from hf_rat.data.vectors import load_vectors
from hf_rat.data.vocabulary import is_east_asian, segment, word_tokenizer
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.pretrain_lm import pretrain
from hf_rat.finetuning.pretrained import number_labels
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.word_model_flags import WordModelArguments
from hf_rat.models import COMPANIONS


def build_word_model(
    flags: Flags, words: WordModelArguments, task: Task, labels: Labels, rows: DatasetDict, **fields: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]:
    """The model, its tokenizer, and the labels.

    Args:
        flags: lengths and `--dropout`, which is the rate before the classifier here.
        words: which model, on which words.
        task: names the text columns.
        labels: of the data set.
        rows: the training split among them gives the vocabulary.
        fields: of the configuration, beside those that the flags set.

    Raises:
        ValueError: a flag that the model has no use for, or a value outside its range.
    """
    if task.train is None or task.train not in rows:
        raise ValueError("--model needs --do_train: its vocabulary comes from the training texts")
    with flags.training.main_process_first(desc="vocabulary"):
        tokenizer, counts = _vocabulary(flags, words, task, rows)
    config = word_config(
        flags,
        words,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1 if labels.regression else len(labels.names),
        **fields,
    )
    auto = AutoModelForTokenClassification if task.tagged else AutoModelForSequenceClassification
    model_class = COMPANIONS[words.model or "textcnn"].models[auto]
    labels = number_labels(config, labels)
    model: Any = model_class(config)
    begin_embeddings(model.get_input_embeddings(), words, tokenizer, counts)
    if words.pretrain_lm:
        start = model.get_input_embeddings().state_dict()
        folder = pretrain(flags, words, config, tokenizer, _texts(task, rows, all_of_them=True), start)
        model = model_class.from_pretrained(folder, config=config)
        model.get_input_embeddings().weight.requires_grad_(not words.freeze_word_vectors)
    # The card takes a model whose name is a folder for one that was trained from scratch, which this one is.
    model.config._name_or_path = str(flags.training.output_dir)
    say(f"{model_class.__name__}: {len(tokenizer)} words, {model.num_parameters() / 1e6:.1f} million parameters")
    return model, tokenizer, labels


def begin_embeddings(
    embeddings: Any, words: WordModelArguments, tokenizer: PreTrainedTokenizerBase, counts: np.ndarray
) -> None:
    """Frequencies and vectors of the words, where they are asked for."""
    if words.normalize_embeddings:
        embeddings.frequencies.copy_(torch.from_numpy(np.maximum(counts, 1)))
    if words.word_vectors is not None:
        special = set(tokenizer.all_special_ids)
        vocabulary = {word: row for word, row in tokenizer.get_vocab().items() if row not in special}
        found = load_vectors(words.word_vectors, vocabulary, words.embedding_size, counts)
        found.copy_into(embeddings.weight)
        embeddings.weight.requires_grad_(not words.freeze_word_vectors)
        say(f"--word_vectors {words.word_vectors!r}: {found}")


def _texts(task: Task, rows: DatasetDict, all_of_them: bool) -> list[Dataset]:
    """The training texts, and with `all_of_them` the unlabelled ones: a column "text" each."""
    assert task.train is not None
    splits = [task.train, *([task.unlabeled] if all_of_them and task.unlabeled is not None else [])]
    parts = []
    for split in splits:
        if task.tagged:
            parts.append(joined(rows[split], task, f"task {task.name!r}, split {split}"))
            continue
        for column in task.text_columns:
            require_texts(rows[split], [column], f"task {task.name!r}, split {split}")
            part = rows[split].select_columns([column])
            parts.append(part if column == "text" else part.rename_columns({column: "text"}))
    return parts


def word_config(flags: Flags, words: WordModelArguments, **known: Any) -> PreTrainedConfig:
    """The configuration of the model that the flags ask for.

    Args:
        flags: `--dropout` among them.
        words: which model.
        known: fields that the data decide.

    Raises:
        ValueError: a flag that the model has no use for, or a value outside its range.
    """
    name = words.model or "textcnn"
    companion = COMPANIONS[name]
    fields: dict[str, Any] = {
        "embedding_size": words.embedding_size,
        "embedding_dropout": words.embedding_dropout,
        "normalize_embeddings": words.normalize_embeddings,
    }
    if flags.model.dropout is not None:
        fields["classifier_dropout"] = flags.model.dropout
    asked: dict[str, tuple[str, Any]] = {  # flag -> what the configuration calls it, and its value
        "hidden_size": (companion.width, words.hidden_size),
        "num_hidden_layers": ("num_hidden_layers", words.num_hidden_layers),
        "between": ("between", words.between),
        "nonlinearity": ("nonlinearity", words.nonlinearity),
        "reset_after": ("reset_after", None if words.reset_after else False),
        "pooling": ("pooling", words.pooling),
        "classifier_hidden_size": ("classifier_hidden_size", words.classifier_hidden_size),
        "truncated_bptt": ("truncated_bptt", words.truncated_bptt),
        "dropout_kind": ("recurrent_dropouts", words.recurrent_dropouts() or None),
    }
    defaults = companion.config().to_dict()
    for flag, (field, value) in asked.items():
        if value is None:
            continue
        if field not in defaults:
            raise ValueError(f"--{flag} {getattr(words, flag)!r}: --model {name} has no use for it")
        fields[field] = value
    return companion.config(**companion.fields, **fields, **known)


def _vocabulary(
    flags: Flags, words: WordModelArguments, task: Task, rows: DatasetDict
) -> tuple[PreTrainedTokenizerBase, np.ndarray]:
    """The tokenizer and the counts of its words; those of texts that were read before are taken from the cache."""
    parts = _texts(task, rows, all_of_them=words.pretrain_lm)
    kind = words.vocabulary or ("spaces" if task.tagged else "characters" if task.script == "chinese" else "words")
    if kind == "words" and is_east_asian(row["text"] for row in islice(parts[0], 1000)):
        say("Most of the text is Chinese or Japanese, which has no spaces between words:")
        if words.vocabulary is None:
            kind = "characters"
            say("  each character is a token, as --vocabulary characters says; --vocabulary jieba takes words")
        else:
            say("  --vocabulary words takes whole phrases for words; --vocabulary characters or jieba fits it better")
    options: dict[str, Any] = {
        "kind": kind,
        "min_count": words.min_count,
        "max_size": words.max_vocabulary,
        "lowercase": words.lowercase,
        "max_length": flags.data.max_seq_length,
        "end_token": words.pretrain_lm,
    }
    if flags.data.streaming:
        return _read_words(parts, options)
    key = Hasher.hash([[part._fingerprint for part in parts], options, version("hf-rat"), version("tokenizers")])
    known = Path(datasets.config.HF_DATASETS_CACHE) / "hf_rat_vocabularies" / key
    if not known.is_dir():
        known.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=known.parent) as folder:
            tokenizer, counts = _read_words(parts, options)
            tokenizer.save_pretrained(folder)
            np.save(Path(folder) / "counts.npy", counts)
            try:
                Path(folder).rename(known)
                Path(folder).mkdir()  # what the context removes
            except OSError:
                if not known.is_dir():  # if it is, another run that read the same texts was quicker
                    raise
    # Always from there: the tokenized texts are cached under a hash of the tokenizer, which has its name in it.
    return AutoTokenizer.from_pretrained(known), np.load(known / "counts.npy", allow_pickle=False)


def _read_words(parts: list[Dataset], options: dict[str, Any]) -> tuple[PreTrainedTokenizerBase, np.ndarray]:
    texts: Iterable[str] = (row["text"] for row in chain.from_iterable(parts))
    return word_tokenizer(segment(texts) if options["kind"] == "jieba" else texts, **options)

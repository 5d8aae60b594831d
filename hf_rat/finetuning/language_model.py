"""A recurrent language model and its windows, made ready, trained, and scored on whole splits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    default_data_collator,
)

from hf_rat.data.metrics import OF_LOSS
from hf_rat.data.task import Task
from hf_rat.data.text_stream import encode_lines, stream_tokenizer
from hf_rat.data.windows import Windows
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.language_model_flags import LanguageModelArguments
from hf_rat.finetuning.pretrained import load_pretrained, source_of_model
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.run import draw, publish, train
from hf_rat.finetuning.settings import refusals_in_one_line, require_scores
from hf_rat.finetuning.summary import summarize_training, table
from hf_rat.finetuning.texts import Texts
from hf_rat.finetuning.word_model import begin_embeddings, word_config
from hf_rat.finetuning.word_model_flags import WordModelArguments
from hf_rat.models import COMPANIONS
from hf_rat.trainer.carried_state import CarriedStateTrainer

_SCORED_AT_ONCE = 1000  # steps of a window in evaluation, all columns together: more only takes memory
_MOST_UNKNOWN = 0.5


@dataclass
class TextJob:
    """One run, made ready.

    Args:
        task: the row of the text; its first metric is the score that counts.
        model: the language model.
        tokenizer: of the model.
        windows: split -> its windows; "train", "validation" and "test", as far as the run needs them.
        card: what the model card says of model and data.
        callbacks: of the trainer.
        beside: name -> log_history of other runs, for the picture of the learning curves.
    """

    task: Task
    model: Any
    tokenizer: PreTrainedTokenizerBase
    windows: dict[str, Windows]
    card: dict[str, Any] = field(default_factory=dict)
    callbacks: list[TrainerCallback] = field(default_factory=list)
    beside: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def prepare_text(
    flags: Flags, words: WordModelArguments, lm: LanguageModelArguments, texts: Texts, card: Mapping[str, Any]
) -> TextJob:
    """Model, tokenizer and windows.

    Args:
        flags: batch sizes, which are columns; the checkpoint, if one is named.
        words: the model from scratch, its vocabulary.
        lm: windows, and what a language model has beside.
        texts: the lines.
        card: what the model card says of model and data.

    Raises:
        ValueError: a flag that the model has no use for, a vocabulary that is none, or a text shorter than a window.
    """
    name = flags.model.model_name_or_path
    if name is None:
        tokenizer: PreTrainedTokenizerBase = stream_tokenizer(
            texts.lines["train"], texts.tokens, words.min_count, words.max_vocabulary, words.lowercase
        )
    else:
        tokenizer = load_pretrained(AutoTokenizer, "--model_name_or_path", name, **source_of_model(flags.model))
    ids = {split: encode_lines(lines, tokenizer) for split, lines in texts.lines.items()}
    if lm.max_train_tokens is not None and "train" in ids:
        ids["train"] = ids["train"][: lm.max_train_tokens]
    _tell(texts, tokenizer, ids)
    windows = {split: _windows(flags, lm, split, part) for split, part in ids.items()}
    model = _build(flags, words, lm, tokenizer, ids["train"]) if name is None else _load(flags, name, tokenizer, ids)
    say(f"{type(model).__name__}: {len(tokenizer)} tokens, {model.num_parameters() / 1e6:.1f} million parameters")
    return TextJob(texts.task, model, tokenizer, windows, {"tasks": "text-generation", **card})


def _tell(texts: Texts, tokenizer: PreTrainedTokenizerBase, ids: Mapping[str, Tensor]) -> None:
    say(f"Data: {texts.task.name}, a token is one of its {texts.tokens}, <eos> ends each line")
    for split, part in ids.items():
        unknown = int((part == tokenizer.unk_token_id).sum())
        say(f"  {split}: {len(texts.lines[split])} lines, {len(part)} tokens, {unknown} of them <unk>")


def _windows(flags: Flags, lm: LanguageModelArguments, split: str, ids: Tensor) -> Windows:
    training = flags.training
    if split != "train":
        columns = training.per_device_eval_batch_size
        if len(ids) < 2:
            raise ValueError(f"the {split} text has {len(ids)} token: nothing comes after it to be predicted")
        return Windows(ids, columns, max(1, _SCORED_AT_ONCE // columns), whole=True)
    columns = training.per_device_train_batch_size
    if (len(ids) - 1) // columns < lm.bptt:
        raise ValueError(
            f"--bptt {lm.bptt}: the training text of {len(ids)} tokens has {max(len(ids) - 1, 0) // columns} steps in "
            f"each of {columns} columns, less than one window; take a smaller --bptt or "
            "--per_device_train_batch_size, or more text"
        )
    seed = training.seed if training.data_seed is None else training.data_seed
    return Windows(ids, columns, lm.bptt, variable=lm.variable_bptt, seed=seed)


def _build(
    flags: Flags,
    words: WordModelArguments,
    lm: LanguageModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
) -> Any:
    """The model from scratch."""
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    config = language_config(flags, words, lm, vocab_size=len(tokenizer), **ends)
    model = COMPANIONS[words.model or "lstm"].models[AutoModelForCausalLM](config)
    counts = np.bincount(ids.numpy(), minlength=len(tokenizer))
    begin_embeddings(model.get_input_embeddings(), words, tokenizer, counts)
    # The card takes a model whose name is a folder for one that was trained from scratch, which this one is.
    model.config._name_or_path = str(flags.training.output_dir)
    return model


def language_config(flags: Flags, words: WordModelArguments, lm: LanguageModelArguments, **known: Any) -> Any:
    """The configuration of the model that the flags ask for; `known` are fields that the text decides.

    Raises:
        ValueError: a value outside its range.
    """
    last = lm.last_hidden_size or (words.embedding_size if lm.tie_weights else None)
    return word_config(
        flags,
        words,
        pad_token_id=None,  # no token is padding, and every vector is trained
        last_hidden_size=last,
        tie_word_embeddings=lm.tie_weights,
        activation_regularization=lm.ar,
        temporal_activation_regularization=lm.tar,
        prediction_regularization=lm.prediction_reg,
        initializer=lm.initializer,
        initializer_range=lm.initializer_range,
        **known,
    )


def _load(flags: Flags, name: str, tokenizer: PreTrainedTokenizerBase, ids: Mapping[str, Tensor]) -> Any:
    """A checkpoint, whose vocabulary the text must be in."""
    what = f"--model_name_or_path {name!r}"
    model = load_pretrained(AutoModelForCausalLM, "--model_name_or_path", name, **source_of_model(flags.model))
    if "state" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{what} is a {type(model).__name__}, which takes no state from one window to the next")
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        raise ValueError(
            f"{what}: its tokenizer has {len(tokenizer)} tokens, the model {known}: they do not belong together"
        )
    for split, part in ids.items():
        unknown = float((part == tokenizer.unk_token_id).float().mean())
        if unknown > _MOST_UNKNOWN:
            raise ValueError(
                f"{what} is of another vocabulary: {unknown:.0%} of the tokens of the {split} text are unknown to it"
            )
    return model


def run_text_job(flags: Flags, job: TextJob, resume: Path | None) -> dict[str, float]:
    """Train, evaluate and save as the flags say; the scores and speeds, as in all_results.json.

    Args:
        flags: do_train, do_eval, do_predict, and where to.
        job: what to train and to score.
        resume: a whole checkpoint, or None.
    """
    require_scores(flags, job.task.metrics)
    if resume is not None:
        _require_same_vocabulary(job, resume)
    trained_on = job.windows.get("train") if flags.training.do_train else None
    variable = trained_on is not None and trained_on.description["variable"]
    with refusals_in_one_line(flags):
        trainer = CarriedStateTrainer(
            model=job.model,
            args=flags.training,
            train_dataset=trained_on,
            eval_dataset=job.windows.get("validation"),
            processing_class=job.tokenizer,
            data_collator=default_data_collator,
            callbacks=job.callbacks,
            length=trained_on.length if trained_on is not None and variable else None,
            scores={name: OF_LOSS[name] for name in job.task.metrics},
        )
    trainer.card_example = "the"
    results: dict[str, float] = {}
    if trained_on is not None:
        results |= train(flags, trainer, resume, trained_on.scored)
        draw(trainer, job.task.metrics[0], job.beside)
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split not in job.windows:
            continue
        windows = job.windows[split]
        if split == "test":
            metrics = dict(trainer.predict(windows, metric_key_prefix=prefix).metrics or {})
        else:
            metrics = trainer.evaluate(windows)
        metrics[f"{prefix}_samples"] = windows.scored
        trainer.log_metrics(prefix, metrics)
        trainer.save_metrics(prefix, metrics)
        results |= metrics
    if trained_on is not None:
        trainer.save_state()
    publish(trainer, job.card)
    return results


def _require_same_vocabulary(job: TextJob, resume: Path) -> None:
    """Refuse to go on with a model of other words."""
    before = load_pretrained(AutoTokenizer, "--resume_from_checkpoint", str(resume)).get_vocab()
    if before != job.tokenizer.get_vocab():
        raise ValueError(
            f"--resume_from_checkpoint {str(resume)!r} is of another vocabulary: {len(before)} tokens, this text has "
            f"{len(job.tokenizer)}{'' if len(before) != len(job.tokenizer) else ' others'}"
        )


def summarize_text(flags: Flags, job: TextJob, results: Mapping[str, float]) -> None:
    """The one summary at the end: a table of the scores, and where things are."""
    names = [*job.task.metrics, "loss"]
    lines = [["split", "predicted tokens", *names]]
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in job.windows:
            scores = [f"{results[f'{prefix}_{name}']:.4f}" for name in names]
            lines.append([split, f"{job.windows[split].scored}", *scores])
    if len(lines) > 1:
        say("\n" + table(lines))
    trained_on = job.windows.get("train") if flags.training.do_train else None
    summarize_training(flags, results, None if trained_on is None else f"{trained_on.scored} tokens")

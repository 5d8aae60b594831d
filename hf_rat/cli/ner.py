"""Train a small model to find entities in texts, or fine-tune any, regularized.

Without data it is trained on generated sentences: hf-rat ner --reg rat
From scratch, defaults are a learning rate of 1e-3, 5 epochs, batches of 64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_rat.data.encoding import Labels
from hf_rat.data.generated_sentences import SENTENCES, generated_sentences
from hf_rat.data.task import Task
from hf_rat.data.tasks import TAGGED
from hf_rat.data.word_encoding import CASES
from hf_rat.finetuning.blame import reported
from hf_rat.finetuning.example import DEFAULTS, Example, run_example
from hf_rat.finetuning.flag_names import errors_in_flags
from hf_rat.finetuning.flags import Flags, build, given_flags, read_flags
from hf_rat.finetuning.folder import in_its_folder, prepare_folder
from hf_rat.finetuning.from_scratch import (
    FROM_SCRATCH,
    add_callbacks,
    card_of,
    check_words,
    choose_by,
    defaults,
    nearest_named,
)
from hf_rat.finetuning.prepare import SOURCES, load, prepare, require_work
from hf_rat.finetuning.pretrained import load_model
from hf_rat.finetuning.run import run_job
from hf_rat.finetuning.summary import summarize
from hf_rat.finetuning.tag_flags import TagArguments
from hf_rat.finetuning.tagging import expand_lengths
from hf_rat.finetuning.word_model import build_word_model, word_config
from hf_rat.finetuning.word_model_flags import WordModelArguments
from hf_rat.models import COMPANIONS

PROGRAM = "hf-rat ner"

# Read as text, before this module is imported: the dataclasses of the flags, and the flags of the short help.
FLAGS = {
    "hf_rat.finetuning.flags": ("ModelArguments", "DataTrainingArguments"),
    "hf_rat.trainer.training_args": ("RegularizedTrainingArguments",),
    "hf_rat.finetuning.word_model_flags": ("WordModelArguments",),
    "hf_rat.finetuning.tag_flags": ("TagArguments",),
}
COMMON = {
    "regularizer": ("reg", "reg_epsilon", "reg_alpha", "fast"),
    "model": ("model", "word_vectors", "dropout_kind", "window", "case_features", "model_name_or_path"),
    "data": ("dataset_name", "train_file", "validation_file", "test_file", "train_words", "max_seq_length"),
    "training": (
        *("do_train", "do_eval", "do_predict", "num_train_epochs", "learning_rate", "per_device_train_batch_size"),
        *("eval_strategy", "seed", "bf16", "resume_from_checkpoint"),
    ),
    "output": ("output_dir", "save_strategy", "load_best_model_at_end"),
}
KNOWN = {task.name: task for task in TAGGED}

_SETTINGS: dict[str, Any] = {"max_seq_length": 256, "model": "bilstm"}
OWN_DEFAULTS = (*FROM_SCRATCH, *_SETTINGS)
# Of the built-in example: the small model learns the rule and then learns the wrong tags by heart.
_EXAMPLE: dict[str, Any] = DEFAULTS | {
    "learning_rate": 1e-2,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 20,
}
_SMALL: dict[str, Any] = {"model": "bilstm", "embedding_size": 32, "hidden_size": 64, "min_count": 1}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


@errors_in_flags()
def run(argv: Sequence[str]) -> dict[str, float]:
    """Do what the flags say; the scores and speeds, as in all_results.json.

    Raises:
        ValueError: bad input, in one line that names the flag.
    """
    given = given_flags(argv, PROGRAM, (WordModelArguments, TagArguments))
    tags = build(TagArguments, given)
    if not any(given.get(name) for name in ("model_name_or_path", *SOURCES)):
        return _run_example(given, tags)
    own = given.get("model_name_or_path") is None
    words = build(WordModelArguments, given, _SETTINGS if own else None)
    flags = read_flags(given, defaults(given, own, _SETTINGS))
    with in_its_folder(flags):
        return _run(flags, given, words, tags, own)


def _run(
    flags: Flags, given: Mapping[str, Any], words: WordModelArguments, tags: TagArguments, own: bool
) -> dict[str, float]:
    training = flags.training
    require_work(flags, given, model=True)
    _check(flags, words, tags, own)
    training.regularizer()  # a wrong expression is said before anything is loaded
    resume = prepare_folder(flags, "ner")
    set_seed(training.seed)
    choose_by(flags, "span_f1")
    known = KNOWN.get((flags.data.dataset_name or "").lower())
    with nearest_named(flags, KNOWN):
        task, labels, rows = load(flags, known, words.pretrain_lm or words.semi_supervised, tagged=True)

    def make(task: Task, labels: Labels, rows: DatasetDict) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]:
        if own:
            return build_word_model(flags, words, task, labels, rows, **_fields(tags))
        return load_model(flags.model, labels, None, AutoModelForTokenClassification)

    job = prepare(flags, task, labels, rows, make, card_of(flags), known is not None, words.semi_supervised)
    if tags.train_words is not None and task.train is not None:
        expand_lengths(flags, job, tags.stages(), rows[task.train], began=resume is not None)
    add_callbacks(job, words)
    results = run_job(flags, job, resume)
    summarize(flags, job, results)
    return results


def _fields(tags: TagArguments) -> dict[str, Any]:
    """Of the configuration of a recurrent model: what it reads of each word."""
    return {"window": tags.window, "type_vocab_size": len(CASES) if tags.case_features else 0}


def _check(flags: Flags, words: WordModelArguments, tags: TagArguments, own: bool) -> None:
    data = flags.data
    for name in ("task_name", "preset", "submission_dir", "do_regression", "streaming", "mc_samples"):
        value = getattr(data, name)
        if value or (value is False and name == "do_regression"):
            raise ValueError(f"--{name} {value!r} is not for hf-rat ner: it tags words; leave it out")
    if tags.train_words is not None and not flags.training.do_train:
        raise ValueError(f"--train_words {tags.train_words!r} needs --do_train: what is evaluated stays whole")
    if not own:
        for name in ("window", "case_features"):
            if getattr(tags, name) != getattr(TagArguments, name):
                raise ValueError(f"--{name} is for --model: --model_name_or_path brings its own")
    elif AutoModelForTokenClassification not in COMPANIONS[words.model or ""].models:
        able = [name for name, one in COMPANIONS.items() if AutoModelForTokenClassification in one.models]
        raise ValueError(f"--model {words.model!r} answers for a whole text; of each word there are {', '.join(able)}")
    elif words.vocabulary not in (None, "spaces"):
        raise ValueError(f"--vocabulary {words.vocabulary!r}: the sentences are cut into words already; leave it out")
    elif of_text := [name for name in ("pooling", "classifier_hidden_size", "truncated_bptt") if getattr(words, name)]:
        value = getattr(words, of_text[0])
        raise ValueError(f"--{of_text[0]} {value!r} is of a whole text, and each word has a tag; leave it out")
    elif words.pretrain_lm and (tags.window > 1 or tags.case_features):
        raise ValueError("--pretrain_lm: a language model reads neither --window nor --case_features; leave one out")
    check_words(flags, words, own)


def _run_example(given: Mapping[str, Any], tags: TagArguments) -> dict[str, float]:
    words = build(WordModelArguments, given, _SMALL)
    for name in ("word_vectors", "semi_supervised", "dropout_schedule", "early_stopping_patience"):
        if getattr(words, name):
            raise ValueError(f"--{name} needs a data set: give --dataset_name or --train_file")
    if tags.train_words is not None:
        raise ValueError("--train_words needs a data set: give --dataset_name or --train_file")
    flags = read_flags(given, _EXAMPLE)
    _check(flags, words, tags, own=True)

    def make(
        task: Task, labels: Labels, rows: DatasetDict, dropout: float
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]:
        own = dataclasses.replace(flags, model=dataclasses.replace(flags.model, dropout=dropout))
        return build_word_model(own, words, task, labels, rows, **_fields(tags))

    example = Example(
        task=SENTENCES,
        rows=lambda seed: generated_sentences(seed=seed),
        build=make,
        dropout=word_config(flags, words).classifier_dropout,
        told="generated sentences (a quarter of their names have a wrong tag)",
        rat="rat(epsilon=1.0, warmup=150)",
    )
    with in_its_folder(flags):
        return run_example(flags, "ner", example)

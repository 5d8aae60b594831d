"""Train a recurrent language model on a text, by words or characters, regularized.

Without data it is trained on generated reviews: hf-rat lm --reg fraternal
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed

from hf_rat.data.generated_reviews import generated_reviews
from hf_rat.data.task import Task
from hf_rat.engine.denormals import without_denormals
from hf_rat.finetuning.blame import reported
from hf_rat.finetuning.flag_names import errors_in_flags
from hf_rat.finetuning.flags import Flags, build, given_flags, read_flags
from hf_rat.finetuning.folder import in_its_folder, prepare_folder
from hf_rat.finetuning.language_model import TextJob, language_config, prepare_text, run_text_job, summarize_text
from hf_rat.finetuning.language_model_flags import LanguageModelArguments
from hf_rat.finetuning.prepare import SOURCES, data_names, require_work
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.texts import Texts, read_texts
from hf_rat.finetuning.word_model_flags import LANGUAGE_MODELS, WordModelArguments
from hf_rat.trainer.dropout_schedule import DropoutSchedule

PROGRAM = "hf-rat lm"

# Read as text, before this module is imported: the dataclasses of the flags, and the flags of the short help.
FLAGS = {
    "hf_rat.finetuning.flags": ("ModelArguments", "DataTrainingArguments"),
    "hf_rat.trainer.training_args": ("RegularizedTrainingArguments",),
    "hf_rat.finetuning.word_model_flags": ("WordModelArguments",),
    "hf_rat.finetuning.language_model_flags": ("LanguageModelArguments",),
}
COMMON = {
    "regularizer": ("reg", "reg_epsilon", "reg_alpha", "fast"),
    "model": ("model", "hidden_size", "num_hidden_layers", "tie_weights", "dropout_kind", "ar", "tar"),
    "data": ("dataset_name", "data_dir", "train_file", "validation_file", "test_file", "tokens", "bptt"),
    "training": (
        *("do_train", "do_eval", "do_predict", "num_train_epochs", "learning_rate", "per_device_train_batch_size"),
        *("seed", "resume_from_checkpoint"),
    ),
    "output": ("output_dir", "save_strategy", "load_best_model_at_end"),
}
_FROM_SCRATCH: dict[str, Any] = {
    "learning_rate": 2e-3,
    "num_train_epochs": 10,
    "per_device_train_batch_size": 20,
    "per_device_eval_batch_size": 10,
}
OWN_DEFAULTS = (*_FROM_SCRATCH, "model", "min_count", "lowercase")
_WORDS: dict[str, Any] = {"model": "lstm", "min_count": 1, "lowercase": False}
_SELECTION: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
}
# What the batches of a text need: they come in order, with the labels as they are, and the model gives its state.
_NEEDED: dict[str, Any] = {
    "train_sampling_strategy": "sequential",
    "remove_unused_columns": False,
    "use_cache": True,
}
# Flags of the other commands, or of the Trainer, that mean nothing here or would undo the order of the text.
_NO_USE = (
    *("task_name", "preset", "submission_dir", "unlabeled_file", "label_column_name", "do_regression", "streaming"),
    *("train_size", "max_seq_length", "pad_to_max_length", "overwrite_cache", "lora_r", "reinit_layers"),
    *("config_name", "tokenizer_name", "ignore_mismatched_sizes", "pooling", "vocabulary", "pretrain_lm"),
    *("pretrain_epochs", "semi_supervised", "label_smoothing_factor", "dataloader_num_workers", "ignore_data_skip"),
    *("dataloader_drop_last", "auto_find_batch_size", "bf16_full_eval", "fp16_full_eval", "prediction_loss_only"),
    *(
        "batch_eval_metrics",
        "classifier_hidden_size",
        "truncated_bptt",
        "unlabeled_size",
        "pretrain_dir",
        "mc_samples",
    ),
)
# With a checkpoint, these are still a run's own.
_OF_A_RUN = ("dropout_schedule", "dropout_gamma", "early_stopping_patience", "tokens", "bptt", "variable_bptt")
_EXAMPLE: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "learning_rate": 1e-2,
    "num_train_epochs": 12,
    "per_device_train_batch_size": 20,
    "per_device_eval_batch_size": 10,
    "logging_steps": 0.05,
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "disable_tqdm": True,
}
_SMALL: dict[str, Any] = _WORDS | {
    "embedding_size": 64,
    "hidden_size": 64,
    "dropout_kind": "input=0.2,output=0.2,dropconnect=0.2",
}
_REVIEWS = Task("reviews", ("text",), (), ("perplexity",), None, "", label_column="")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


@errors_in_flags()
def run(argv: Sequence[str]) -> dict[str, float]:
    """Do what the flags say; the scores and speeds, as in all_results.json.

    Raises:
        ValueError: bad input, in one line that names the flag.
    """
    given = given_flags(argv, PROGRAM, (WordModelArguments, LanguageModelArguments))
    lm = build(LanguageModelArguments, given)
    example = not any(given.get(name) for name in ("model_name_or_path", *SOURCES))
    words = build(WordModelArguments, given, _SMALL if example else _WORDS)
    flags = read_flags(given, _EXAMPLE if example else _defaults(given))
    _check(flags, given, words, lm)
    for name, value in _NEEDED.items():
        setattr(flags.training, name, value)
    with in_its_folder(flags), without_denormals():
        return _run_example(flags, words, lm) if example else _run(flags, given, words, lm)


def _run(
    flags: Flags, given: Mapping[str, Any], words: WordModelArguments, lm: LanguageModelArguments
) -> dict[str, float]:
    training = flags.training
    require_work(flags, given, model=True)
    training.regularizer()  # a wrong expression is said before anything is loaded
    resume = prepare_folder(flags, "lm")
    set_seed(training.seed)
    texts = read_texts(flags, lm)
    if training.load_best_model_at_end and training.metric_for_best_model in (None, "loss"):
        training.metric_for_best_model, training.greater_is_better = texts.task.metrics[0], False
    card = data_names(flags)
    if flags.model.model_name_or_path is not None:
        card["finetuned_from"] = flags.model.model_name_or_path
    job = prepare_text(flags, words, lm, texts, card)
    _add_callbacks(job, words)
    results = run_text_job(flags, job, resume)
    summarize_text(flags, job, results)
    return results


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Other defaults than the Trainer's, for the flags that are not set."""
    chooses = given.get("do_train") and given.get("do_eval") and given.get("save_strategy") != "no"
    return _FROM_SCRATCH | (_SELECTION if chooses else {})


def _check(flags: Flags, given: Mapping[str, Any], words: WordModelArguments, lm: LanguageModelArguments) -> None:
    training, name = flags.training, flags.model.model_name_or_path
    for flag in (*_NO_USE, *_NEEDED):
        if given.get(flag) and given[flag] != _NEEDED.get(flag):
            raise ValueError(f"--{flag} {given[flag]}: hf-rat lm has no use for it, leave it out")
    if "dropout" in given:
        raise ValueError(
            f"--dropout {given['dropout']}: a language model has several rates; give --dropout_kind "
            f"output={given['dropout']}, or others"
        )
    if training.world_size > 1 or training.n_gpu > 1:
        processes = max(training.world_size, training.n_gpu)
        raise ValueError(
            f"hf-rat lm reads its text in one process, on one device, and there are {processes}: start it without a "
            "launcher, with CUDA_VISIBLE_DEVICES=0 where there are several GPUs"
        )
    if words.early_stopping_patience is not None and not training.load_best_model_at_end:
        raise ValueError(
            f"--early_stopping_patience {words.early_stopping_patience} needs --do_train, --do_eval and a "
            "--save_strategy: the best checkpoint is the one that is kept"
        )
    if name is None:
        if words.model not in LANGUAGE_MODELS:
            raise ValueError(f"--model {words.model!r} is no language model; there are {', '.join(LANGUAGE_MODELS)}")
        if not training.do_train:
            raise ValueError("--do_train is missing: without --model_name_or_path the model is trained from scratch")
        language_config(flags, words, lm)  # a flag that the model has no use for is said before anything is loaded
        return
    own = {f.name for kind in (WordModelArguments, LanguageModelArguments) for f in dataclasses.fields(kind)}
    for flag in given:
        if flag in own and flag not in (*_OF_A_RUN, "max_train_tokens"):
            raise ValueError(
                f"--{flag} {given[flag]!r} is for a model from scratch: --model_name_or_path brings its own"
            )


def _add_callbacks(job: TextJob, words: WordModelArguments) -> None:
    if words.dropout_schedule is not None:
        job.callbacks.append(DropoutSchedule(words.dropout_schedule, words.dropout_gamma))
    if words.early_stopping_patience is not None:
        job.callbacks.append(EarlyStoppingCallback(words.early_stopping_patience))


def _run_example(flags: Flags, words: WordModelArguments, lm: LanguageModelArguments) -> dict[str, float]:
    """Train the small model on generated reviews as --reg says, and, unless --alone, plainly beside it."""
    training = flags.training
    if training.do_predict or not (training.do_train and training.do_eval):
        raise ValueError("the example is trained and evaluated: give --dataset_name or --train_file for anything else")
    resume = prepare_folder(flags, "lm")
    rows = generated_reviews(train=300, validation=1000, seed=training.seed)
    lines = {split: list(rows[split]["text"]) for split in ("train", "validation")}
    texts = Texts(_REVIEWS, lm.tokens or "words", lines)
    say(
        f"No data given: {len(lines['train'])} generated reviews to train on, "
        f"{len(lines['validation'])} to evaluate on."
    )

    def job(own: Flags) -> TextJob:
        set_seed(training.seed)
        made = prepare_text(own, words, lm, texts, {"dataset": "generated reviews"})
        _add_callbacks(made, words)
        return made

    regularized, plain = job(flags), None
    if not flags.data.alone and repr(training.regularizer()) != "plain()":
        changes: dict[str, Any] = {f"reg_{name}": None for name in training.reg_overrides()}
        changes |= {"reg": "plain", "push_to_hub": False, "resume_from_checkpoint": None}
        changes |= {"output_dir": str(Path(str(training.output_dir)) / "plain")}
        own = dataclasses.replace(flags, training=dataclasses.replace(training, **changes))
        plain = run_text_job(own, job(own), None)
    set_seed(training.seed)
    results = run_text_job(flags, regularized, resume)
    summarize_text(flags, regularized, results)
    if plain is not None:
        gain = plain["eval_perplexity"] - results["eval_perplexity"]
        say(f"Trained plainly for as many steps: perplexity {plain['eval_perplexity']:.4f}, {gain:+.4f} to it.")
    return results

"""What is particular to words with a tag each: how a split is encoded, and training on pieces of growing length."""

from __future__ import annotations

import dataclasses
from typing import Any

from datasets import Dataset

from hf_rat.data.encoding import Labels
from hf_rat.data.loading import require_rows
from hf_rat.data.tagged import cut
from hf_rat.data.word_encoding import encode_words, words_beyond
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.job import Job
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.settings import refusals_in_one_line
from hf_rat.finetuning.tag_flags import Stage
from hf_rat.finetuning.whole_splits import build_trainer
from hf_rat.models import RNNConfig


def reads_cases(model: Any) -> bool:
    """Whether a model reads the capitalisation of words beside them."""
    config = model.config
    return config.model_type == RNNConfig.model_type and config.type_vocab_size > 0


def encode_tagged(
    flags: Flags, job: Job, rows: Dataset, labels: Labels | None, limit: int | None, what: str, whole: bool
) -> Dataset:
    """A split of tagged sentences as the model is fed it.

    Args:
        flags: lengths, padding and caching.
        job: the row of the data set, the tokenizer and the model.
        rows: the split as loaded.
        labels: how tags are numbered; None where the split has none.
        limit: the first rows to keep; None keeps all.
        what: flag and split, for errors.
        whole: whether every word needs an answer: then no sentence may be cut.

    Raises:
        ValueError: the split is empty, a row is wrong, or a sentence is too long.
    """
    data, tokenizer = flags.data, job.tokenizer
    require_rows(rows, what)
    rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
    length = min(data.max_seq_length, tokenizer.model_max_length)
    options = {"pad": data.pad_to_max_length, "fresh": data.overwrite_cache, "cases": reads_cases(job.model)}
    with flags.training.main_process_first(desc="tokenizing"):
        found = encode_words(rows, tokenizer, job.task, labels, length, what=what, **options)
    beyond = words_beyond(rows, found, job.task)
    if beyond and whole:
        row, count = next(iter(beyond.items()))
        raise ValueError(
            f"--max_seq_length {length}: {what}: {count} words of row {row} lie beyond it and would have no answer "
            f"({len(beyond)} such rows); give more, or part the sentences"
        )
    if beyond:
        say(f"  {what}: {sum(beyond.values())} words of {len(beyond)} rows lie beyond --max_seq_length {length}")
    return found


def expand_lengths(flags: Flags, job: Job, stages: list[Stage], rows: Dataset, began: bool) -> None:
    """Length expansion: train on short pieces of the sentences first, each stage from the weights of the former.

    Each stage has a learning rate schedule of its own, and is a training without evaluations and checkpoints; the
    last stage is the training of the run, whose rows become those of the job.

    Args:
        flags: of the run; `--max_steps` ends each stage.
        job: its model is trained, and its training rows set to those of the last stage.
        stages: how long the pieces are and for how many epochs.
        rows: the training split as loaded.
        began: whether the last stage has begun already: its checkpoint stands for those before.
    """
    what = f"task {job.task.name!r}, split {job.task.train}"
    limit = flags.data.max_train_samples
    rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
    *before, last = stages
    for stage in () if began else before:
        changes: dict[str, Any] = {"num_train_epochs": stage.epochs, "eval_strategy": "no", "save_strategy": "no"}
        changes |= {"load_best_model_at_end": False, "push_to_hub": False, "resume_from_checkpoint": None}
        own = dataclasses.replace(flags, training=dataclasses.replace(flags.training, **changes))
        pieces = encode_tagged(flags, job, cut(rows, job.task, stage.words, what), job.labels, None, what, False)
        say(f"Pieces of {stage.words} words: {len(pieces)}, {stage.epochs:g} epochs")
        trainer = build_trainer(own, dataclasses.replace(job, train=pieces, evaluation={}, callbacks=[]))
        with refusals_in_one_line(own):
            trainer.train()
    job.train = encode_tagged(flags, job, cut(rows, job.task, last.words, what), job.labels, None, what, False)
    say(f"Pieces of {last.words} words: {len(job.train)}")

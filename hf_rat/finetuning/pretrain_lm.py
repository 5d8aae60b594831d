"""`--pretrain_lm`: a language model on all texts, from whose recurrent layers the classifier starts."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, concatenate_datasets
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
)

from hf_rat.data.encoding import tokenize
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.pretrained import load_pretrained
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.word_model_flags import WordModelArguments
from hf_rat.models import RNNConfig, RNNForCausalLM
from hf_rat.trainer.clipping import Clipping
from hf_rat.trainer.decay import Decay

FOLDER = "language_model"


class LanguageModelTrainer(Clipping, Decay, Trainer):
    """The Trainer, which clips as `--no_clip_embeddings` says and whose rate goes as `--lr_decay` does."""


def pretrain(
    flags: Flags,
    words: WordModelArguments,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[Dataset],
    start: Mapping[str, Any],
) -> Path:
    """Train a language model on the texts, each one a sequence that `<eos>` ends; its folder.

    A folder that holds a finished one, as a resumed run finds it and any with --pretrain_dir, is taken as it is. The
    model has the classifier's sizes and dropouts, and a softmax over the whole vocabulary (Park et al.'s is sampled),
    so a large vocabulary costs most of the time.

    Args:
        flags: batch sizes, learning rate, precision and output folder, as of the classifier.
        words: number of epochs, and the folder.
        config: of the classifier.
        tokenizer: ends every text.
        texts: a column "text" each.
        start: state of the word embeddings to start from.

    Raises:
        ValueError: the folder holds a language model of other words or sizes.
    """
    own = Path(str(flags.training.output_dir)) / FOLDER
    folder = own if words.pretrain_dir is None else Path(words.pretrain_dir)
    if (folder / "config.json").is_file():
        _require_fit(folder, config, tokenizer)
        say(f"Language model: taken from {folder}")
        return folder
    model: Any = RNNForCausalLM(cast(RNNConfig, copy.deepcopy(config)))
    model.get_input_embeddings().load_state_dict(start)
    length = flags.data.max_seq_length
    rows = concatenate_datasets(
        [
            tokenize(part, tokenizer, ("text",), length, fresh=flags.data.overwrite_cache, what="--pretrain_lm")
            for part in texts
        ]
    )
    rows = rows.select_columns(["input_ids", "attention_mask"]).filter(lambda row: len(row["input_ids"]) > 1)
    changes: dict[str, Any] = {f"reg_{name}": None for name in flags.training.reg_overrides()}
    changes |= {"reg": "plain", "output_dir": str(own / "run"), "num_train_epochs": words.pretrain_epochs}
    changes |= {"max_steps": -1, "label_smoothing_factor": 0.0, "push_to_hub": False}
    changes |= {"average": None, "layer_decay": None, "probe_steps": 0}
    changes |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    training = dataclasses.replace(flags.training, **changes)
    say(f"Language model: {len(rows)} texts, {words.pretrain_epochs:g} epochs")
    trainer = LanguageModelTrainer(
        model=model,
        args=training,
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    loss = trainer.train().metrics["train_loss"]
    say(f"Language model: mean training loss {loss:.4f} per word, in {folder}")
    # config.json is written after the weights: it tells that they are whole.
    unfinished = folder / f"unfinished-{os.getpid()}"  # of this process: runs that share the folder may begin together
    trainer.save_model(str(unfinished))
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(unfinished)
        for name in sorted(path.name for path in unfinished.iterdir() if path.name != "config.json"):
            (unfinished / name).replace(folder / name)
        (unfinished / "config.json").replace(folder / "config.json")
        unfinished.rmdir()
    trainer.accelerator.wait_for_everyone()
    return folder


def _require_fit(folder: Path, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a language model of other words, or of another shape, than the classifier's."""
    what = f"--pretrain_lm: the language model in {str(folder)!r}"
    if load_pretrained(AutoTokenizer, "--pretrain_dir", str(folder)).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{what} is of another vocabulary; give the same texts and --vocabulary, or another folder")
    before = RNNConfig.from_pretrained(folder)
    for name in ("embedding_size", "normalize_embeddings", "cell", "hidden_size", "num_hidden_layers"):
        if getattr(before, name) != getattr(config, name):
            raise ValueError(f"{what} has {name}={getattr(before, name)!r}, the classifier {getattr(config, name)!r}")

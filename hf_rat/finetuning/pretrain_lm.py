"""`--pretrain_lm`: a language model on all texts, from whose recurrent layers the classifier starts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, concatenate_datasets
from transformers import DataCollatorForLanguageModeling, PreTrainedConfig, PreTrainedTokenizerBase, Trainer

from hf_rat.data.encoding import tokenize
from hf_rat.finetuning.flags import Flags
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

    A folder that holds a finished one, as a resumed run finds it, is taken as it is. The model has the classifier's
    sizes and dropouts, and a softmax over the whole vocabulary (Park et al.'s is sampled), so a large vocabulary
    costs most of the time.

    Args:
        flags: batch sizes, learning rate, precision and output folder, as of the classifier.
        words: number of epochs.
        config: of the classifier.
        tokenizer: ends every text.
        texts: a column "text" each.
        start: state of the word embeddings to start from.
    """
    folder = Path(str(flags.training.output_dir)) / FOLDER
    if (folder / "config.json").is_file():
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
    changes |= {"reg": "plain", "output_dir": str(folder / "run"), "num_train_epochs": words.pretrain_epochs}
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
    trainer.save_model(str(folder / "unfinished"))
    if trainer.is_world_process_zero():
        for name in ("model.safetensors", "config.json"):
            (folder / "unfinished" / name).replace(folder / name)
    trainer.accelerator.wait_for_everyone()
    return folder

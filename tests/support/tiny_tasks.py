"""A tiny model and batches for every kind of task that tiny.py does not have, with labels to be ignored in them.

model = task_model("causal_lm", dropout=0.1)     # in training mode, the same weights at every call
batch = collate(task_rows("causal_lm", 4))       # as unequal as can be: in length, and in how many labels count
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import tiny
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
)

TASKS: dict[str, tuple[Any, str]] = {
    "token_classification": (AutoModelForTokenClassification, "bert"),
    "question_answering": (AutoModelForQuestionAnswering, "bert"),
    "multiple_choice": (AutoModelForMultipleChoice, "bert"),
    "masked_lm": (AutoModelForMaskedLM, "bert"),
    "causal_lm": (AutoModelForCausalLM, "gpt2"),
    "causal_lm_llama": (AutoModelForCausalLM, "llama"),
    "causal_lm_unshifted": (AutoModelForCausalLM, "bart"),
    "seq2seq": (AutoModelForSeq2SeqLM, "t5"),
    "seq2seq_bart": (AutoModelForSeq2SeqLM, "bart"),
}
"""Name -> its Auto class, and the family of tiny.py. The causal model of BART does not shift its labels."""

BY_POSITION = [name for name in TASKS if name not in ("question_answering", "multiple_choice")]
INVARIANT = ["token_classification", "masked_lm", "causal_lm", "seq2seq"]
IGNORED = -100
DEPTHS = {"num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"}
"""What the configs call the number of layers, which is one here: test_models.py has the families with two."""


@cache
def _built(task: str, dropout: float) -> nn.Module:
    auto, family = TASKS[task]
    config = tiny._config(family, dropout)
    config.num_labels = 2 if task == "question_answering" else 3
    for name in vars(config).keys() & DEPTHS:
        setattr(config, name, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return auto.from_config(config, attn_implementation="eager")


def task_model(task: str, dropout: float = 0.0) -> nn.Module:
    """In training mode."""
    return copy.deepcopy(_built(task, dropout)).train()


def task_rows(task: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Different examples of 4 to 7 tokens; of those with a label per position, the fourth has none that counts."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Any:
        return torch.randint(low, high, shape, generator=generator).tolist()

    rows: list[dict[str, Any]] = []
    for number in range(count):
        length = 7 - number % 4
        ids = [tiny.FIRST, *draw(tiny.FIRST + 1, tiny.VOCABULARY, length - 2), tiny.EOS]
        row: dict[str, Any] = {"input_ids": ids}
        if task == "question_answering":
            row |= {"start_positions": draw(0, 2), "end_positions": draw(2, length)}
        elif task == "multiple_choice":
            row["input_ids"] = [[*ids[:-1], *draw(tiny.FIRST + 1, tiny.VOCABULARY, 1)] for _ in range(3)]
            row["labels"] = draw(0, 3)
        elif task.startswith("seq2seq"):
            row["labels"] = [*draw(tiny.FIRST + 1, tiny.VOCABULARY, 1 + number % 5), tiny.EOS]
        elif task.startswith("causal_lm"):
            prompt = 1 + number % 3
            row["labels"] = [IGNORED] * prompt + ids[prompt:]
        elif task == "masked_lm":
            row["labels"] = [label if place % 3 == number % 2 else IGNORED for place, label in enumerate(ids)]
        else:
            row["labels"] = [IGNORED, *draw(0, 3, length - 2), IGNORED]
        if number == 3 and task in BY_POSITION:
            row["labels"] = [IGNORED] * len(row["labels"])
        rows.append(row)
    return rows


def collate(rows: list[dict[str, Any]], length: int = 0) -> dict[str, Tensor]:
    """Pads to the longest of the batch, or to `length`; adds attention_mask."""

    def padded(name: str, value: int, least: int = 0) -> Tensor:
        several = [row[name] if isinstance(row[name][0], list) else [row[name]] for row in rows]
        longest = max(least, *(len(ids) for row in several for ids in row))
        table = torch.tensor([[ids + [value] * (longest - len(ids)) for ids in row] for row in several])
        return table if table.shape[1] > 1 else table.squeeze(1)

    batch = {"input_ids": padded("input_ids", tiny.PAD, length)}
    batch["attention_mask"] = (batch["input_ids"] != tiny.PAD).long()
    for name in [name for name in rows[0] if name != "input_ids"]:
        by_position = isinstance(rows[0][name], list)
        batch[name] = padded(name, IGNORED) if by_position else torch.tensor([row[name] for row in rows])
    return batch


def collate_to_one_length(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """For question answering, whose task loss is a softmax over the padding too."""
    return collate(rows, 7)


def options(task: str, count: int = 24) -> dict[str, Any]:
    """Data for a trainer: `count` examples of a task."""
    return {"train_dataset": task_rows(task, count), "data_collator": collate}

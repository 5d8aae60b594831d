"""The embedded default: no data and no model were named, so generated pairs train a small model, twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import BertForSequenceClassification, set_seed

from hf_rat.commands.finetune import Job, encode, prepare_folder, read_results, run_job, say, table
from hf_rat.commands.flags import Flags
from hf_rat.data.encoding import Labels
from hf_rat.data.generated import GENERATED, generated_config, generated_pairs, generated_tokenizer

# Chosen so that the small model learns the rule and then begins to memorize the flipped labels.
DEFAULTS: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "learning_rate": 1e-3,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 128,
    "warmup_steps": 0.1,
    "logging_steps": 50,
    "save_strategy": "no",
}
_BASELINE = "plain"


def run_embedded(flags: Flags, stem: str) -> dict[str, float]:
    """Train the small model `plain` and with the chosen regularizer, from the same seed; the latter's results.

    Args:
        flags: read with `DEFAULTS`. The regularized model is saved in --output_dir, the results of `plain` in its
            subfolder "plain".
        stem: name of the command, for a fresh folder.

    Raises:
        ValueError: a flag asks for what generated data and a model without pretrained weights cannot give.
    """
    for name in ("lora_r", "config_name", "tokenizer_name", "dropout"):
        if name in flags.given:
            raise ValueError(f"--{name} needs --model_name_or_path: the embedded model has no use for it")
    for name in ("do_predict", "submission_dir", "recipe", "text_column_names", "label_column_name"):
        if getattr(flags.training, name, None) or getattr(flags.data, name, None):
            raise ValueError(f"--{name} needs a data set: give --task_name, --dataset_name or --train_file")
    if not (flags.training.do_train and flags.training.do_eval):
        raise ValueError("--do_train and --do_eval cannot be off in the embedded run: it compares two trainings")
    # A second thread costs such a small model more than it gives, several times so on a busy machine.
    torch.set_num_threads(1)
    resume = prepare_folder(flags, stem)
    folder = Path(str(flags.training.output_dir))
    regularizer = flags.training.regularizer()
    rows = generated_pairs()
    say(
        f"No task and no model given: {len(rows['train'])} generated pairs (a fifth of their labels flipped), "
        f"{len(rows['validation'])} validation pairs, and a small model."
    )
    lines = [["regularizer", "train accuracy", "validation accuracy", "validation loss", "seconds"]]
    changes: dict[str, Any] = {f"reg_{name}": None for name in flags.training.reg_overrides()}
    changes |= {"reg": "plain", "output_dir": str(folder / _BASELINE), "save_strategy": "no", "push_to_hub": False}
    baseline = dataclasses.replace(flags.training, **changes)
    if repr(regularizer) != repr(baseline.regularizer()):
        results = read_results(folder / _BASELINE)
        if results is None:
            results = run_job(dataclasses.replace(flags, training=baseline), _job(flags), None)
        lines.append(_line("plain", results))
    results = run_job(flags, _job(flags), resume)
    lines.append(_line(repr(regularizer), results))
    say("\n" + table(lines))
    say(f"Model: {folder}, its card: {folder / 'README.md'}")
    return results


def _job(flags: Flags) -> Job:
    """A new model from the run's seed, and the encoded pairs."""
    set_seed(flags.training.seed)
    rows, tokenizer, labels = generated_pairs(), generated_tokenizer(), Labels.of_task(GENERATED)
    config = generated_config(tokenizer)
    config.problem_type = "single_label_classification"
    config.id2label = labels.id2label
    config.label2id = {name: number for number, name in labels.id2label.items()}
    limits = {"train": flags.data.max_train_samples, "validation": flags.data.max_eval_samples}
    encoded = {
        split: encode(flags, rows[split], GENERATED, labels, tokenizer, limit, f"the generated {split} split")
        for split, limit in limits.items()
    }
    model = BertForSequenceClassification(config)
    # The card takes a model whose name is a folder for one that was trained from scratch, which this one is.
    model.config._name_or_path = str(flags.training.output_dir)
    return Job(
        task=GENERATED,
        labels=labels,
        model=model,
        tokenizer=tokenizer,
        train=encoded["train"],
        # The validation split comes last: the card reports what was evaluated last.
        evaluation={"train": encoded["train"], "": encoded["validation"]},
        named=False,
        card={"tasks": "text-classification", "dataset": "generated pairs of remarks"},
    )


def _line(name: str, results: dict[str, float]) -> list[str]:
    numbers = (results["eval_accuracy_train"], results["eval_accuracy"], results["eval_loss"])
    return [name, *(f"{number:.4f}" for number in numbers), f"{results['train_runtime']:.1f}"]

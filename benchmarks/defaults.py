"""How the default epsilon of each recipe was chosen: a sweep on generated pairs that no other run ever sees.

    python benchmarks/defaults.py --output results/defaults/raw.json

The task is the generator's pairs without asides (a small BERT whose word vectors have norm 1, few pairs, a fifth of
their labels flipped), another one than that on which `run_glue.py` reports.
Prints accuracy and loss on clean pairs, mean over the seeds, for each expression.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from transformers import BertForSequenceClassification, DataCollatorWithPadding, set_seed

from hf_rat import RegularizedTrainer, RegularizedTrainingArguments
from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer

EXPRESSIONS = (
    "plain",
    *(f"fgm(epsilon={epsilon})" for epsilon in (0.05, 0.1, 0.2, 0.5)),
    *(f"rat(epsilon={epsilon})" for epsilon in (0.05, 0.1, 0.2, 0.5)),
    "rat(epsilon=0.1, alpha=0.5)",
    "rat(epsilon=0.1, alpha=4.0)",
    "rdrop(alpha=0.5)",
    "rdrop(alpha=1.0)",
    "rdrop(alpha=4.0)",
    "pgd(epsilon=0.1, step=0.05)",
    "freelb(epsilon=0.1, step=0.05, start=0.1)",
    "freelb",
    *(f"vat(epsilon={epsilon})" for epsilon in (0.1, 0.3, 1.0)),
    "smart",
    "r3f",
    "neftune",
    "adversarial_dropout",
)
DATA_SEED = 1


def train(expression: str, seed: int) -> dict[str, Any]:
    """One run: accuracy and loss on the clean pairs."""
    set_seed(seed)
    tokenizer = generated_tokenizer()
    rows = generated_pairs(seed=DATA_SEED).map(
        lambda row: {**tokenizer(row["sentence1"], row["sentence2"]), "labels": row["label"]},
        remove_columns=["sentence1", "sentence2", "label"],
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = RegularizedTrainer(
            model=BertForSequenceClassification(generated_config(tokenizer)),
            args=RegularizedTrainingArguments(
                output_dir=folder,
                reg=expression,
                learning_rate=1e-3,
                num_train_epochs=12,
                per_device_train_batch_size=16,
                warmup_steps=0.1,
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                seed=seed,
            ),
            train_dataset=rows["train"],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda said: {
                "accuracy": float(np.mean(np.argmax(said.predictions, axis=-1) == said.label_ids))
            },
        )
        trainer.train()
        scores = trainer.evaluate(rows["validation"])
    return {"expression": expression, "seed": seed, "accuracy": scores["eval_accuracy"], "loss": scores["eval_loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expressions", nargs="+", default=EXPRESSIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--output", type=Path, required=True, help="JSON file, written after every run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    for expression in arguments.expressions:
        for seed in arguments.seeds:
            runs.append(train(expression, seed))
            report = {"versions": {name: version(name) for name in ("torch", "transformers")}, "runs": runs}
            arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        own = [run for run in runs if run["expression"] == expression]
        accuracies, losses = [run["accuracy"] for run in own], [run["loss"] for run in own]
        spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
        print(f"{expression:45} accuracy {mean(accuracies):.4f} +- {spread:.4f}  loss {mean(losses):.4f}", flush=True)


if __name__ == "__main__":
    main()

"""A search for epsilon and alpha with Optuna, through `trainer.hyperparameter_search`.

    pip install "hf-rat" optuna && python examples/hyperparameter_search.py

How large a perturbation should be depends on the model and the data, so it is worth a small search. With
`RegularizedTrainingArguments` the regularizer is described by arguments: `reg="rat"`, and `reg_epsilon`, `reg_alpha`
and so on, each of which overrides that argument of the recipe. A search sweeps them like any other argument.

Choose on held-back examples, and score the choice once, on others. Offline: the reviews are made here, a fifth of the
training labels is wrong, the tokenizer is the package's own and the model is a small BERT.
"""

import argparse
import random
import tempfile

from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding, set_seed

from hf_rat import RegularizedTrainer, RegularizedTrainingArguments
from hf_rat.data.vocabulary import word_tokenizer

PRAISE = ("superb", "excellent", "splendid", "pleasant")
BLAME = ("awful", "dreadful", "horrid", "tedious")
NEUTRAL = ("the", "a", "film", "scene", "actor", "saw", "we", "was", "in", "of", "and", "long", "evening", "train")


def make_reviews(count: int, seed: int, wrong: float = 0.0) -> Dataset:
    """Three judgements among other words; label 1 if most of them praise, flipped with probability `wrong`."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        praised = [rng.random() < 0.5 for _ in range(3)]
        words = [rng.choice(PRAISE if good else BLAME) for good in praised] + rng.choices(NEUTRAL, k=5)
        rng.shuffle(words)
        rows.append({"text": " ".join(words), "label": int((sum(praised) >= 2) != (rng.random() < wrong))})
    return Dataset.from_list(rows)


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(max_steps: int, trials: int) -> None:
    rows = {
        "train": make_reviews(400, 1, wrong=0.2),
        "validation": make_reviews(500, 2),
        "test": make_reviews(500, 3),
    }
    tokenizer, _ = word_tokenizer(rows["train"]["text"])
    data = {
        split: rows.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns="text")
        for split, rows in rows.items()
    }

    def model_init() -> BertForSequenceClassification:
        """The same model for every trial, with word vectors of norm 1, against which epsilon is measured."""
        set_seed(0)
        sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
        config = BertConfig(vocab_size=len(tokenizer), pad_token_id=0, initializer_range=0.125, **sizes)
        return BertForSequenceClassification(config)

    def space(trial) -> dict[str, float]:
        return {
            "reg_epsilon": trial.suggest_float("reg_epsilon", 0.01, 0.5, log=True),
            "reg_alpha": trial.suggest_categorical("reg_alpha", [0.0, 0.5, 2.0]),
        }

    with tempfile.TemporaryDirectory() as folder:
        args = RegularizedTrainingArguments(
            output_dir=folder,
            reg="rat",
            max_steps=max_steps,
            learning_rate=2e-3,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=128,
            eval_strategy="steps",
            eval_steps=max_steps,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            no_price=True,
        )
        trainer = RegularizedTrainer(
            args=args,
            model_init=model_init,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy,
        )
        best = trainer.hyperparameter_search(
            hp_space=space,
            compute_objective=lambda metrics: metrics["eval_accuracy"],
            direction="maximize",
            backend="optuna",
            n_trials=trials,
        )
        print(f"best of {trials} trials on validation: {best.hyperparameters}, accuracy {best.objective:.3f}")

        # Train once more with what was chosen, and score it on examples that chose nothing.
        for name, value in best.hyperparameters.items():
            setattr(trainer.args, name, value)
        trainer.train()
        print("test accuracy:", trainer.evaluate(data["test"])["eval_accuracy"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Searches epsilon and alpha of R-AT with Optuna.")
    parser.add_argument("--max_steps", type=int, default=100, help="optimizer steps of each trial")
    parser.add_argument("--trials", type=int, default=4)
    arguments = parser.parse_args()
    main(arguments.max_steps, arguments.trials)

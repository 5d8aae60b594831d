"""A companion model: train a TextCNN as an AutoModel, save it, and load it where hf-rat is not known.

    python examples/companion_model.py
    python examples/companion_model.py --model bilstm

`import hf_rat` registers small models (TextCNN, RNN, LSTM, GRU with recurrent dropouts, hierarchical attention) with
the Auto classes of Transformers. They are built from a config, trained, saved and pushed like any other model. The
folder that is saved has the model's code too, so it loads with `trust_remote_code=True`, without hf-rat.

Offline: the reviews are made here, and the tokenizer has one token for each of their words.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedConfig,
    TrainingArguments,
    set_seed,
)

from hf_rat import RegularizedTrainer, rat
from hf_rat.data.vocabulary import word_tokenizer
from hf_rat.models import RNNConfig, TextCNNConfig

PRAISE = ("superb", "excellent", "splendid", "pleasant")
BLAME = ("awful", "dreadful", "horrid", "tedious")
NEUTRAL = ("the", "a", "film", "scene", "actor", "saw", "we", "was", "in", "of", "and", "long", "evening", "train")

LOAD = """
import sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, sentence = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert "hf_rat" not in sys.modules
logits = model(**tokenizer(sentence, return_tensors="pt")).logits
print(type(model).__name__, "says:", sentence, "->", model.config.id2label[int(logits.argmax())])
"""
"""What somebody else runs who has Transformers and the folder."""


def make_reviews(count: int, seed: int) -> Dataset:
    """Three judgements among other words, in which "not" turns the next one round; label 1 if most of them praise."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        parts, praise = [[word] for word in rng.choices(NEUTRAL, k=9)], 0
        for _ in range(3):
            good, negated = rng.random() < 0.5, rng.random() < 0.3
            parts.append([*(["not"] if negated else []), rng.choice(PRAISE if good else BLAME)])
            praise += good != negated
        rng.shuffle(parts)
        rows.append({"text": " ".join(word for part in parts for word in part), "label": int(praise >= 2)})
    return Dataset.from_list(rows)


def make_config(name: str, words: int) -> PreTrainedConfig:
    labels = {"id2label": {0: "blame", 1: "praise"}, "label2id": {"blame": 0, "praise": 1}}
    if name == "textcnn":
        return TextCNNConfig(vocab_size=words, embedding_size=64, num_filters=64, **labels)
    return RNNConfig(
        vocab_size=words,
        embedding_size=64,
        cell="lstm",
        hidden_size=64,
        bidirectional=True,
        pooling="attention",
        recurrent_dropouts={"variational": 0.2},  # one mask per example for all time steps
        **labels,
    )


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(name: str, max_steps: int) -> None:
    set_seed(0)
    train, test = make_reviews(500, seed=1), make_reviews(1000, seed=2)
    tokenizer, _ = word_tokenizer(train["text"])
    train, test = (
        rows.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns="text") for rows in (train, test)
    )
    model = AutoModelForSequenceClassification.from_config(make_config(name, len(tokenizer)))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=max_steps,
            learning_rate=3e-3,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RegularizedTrainer(
            model,
            args,
            train_dataset=train,
            eval_dataset=test,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy,
            regularizer=rat(epsilon=0.1),
        )
        trainer.train()
        print(trainer.evaluate())
        trainer.save_model(folder)  # weights, config, tokenizer, and the code of the model
        print("saved:", ", ".join(sorted(path.name for path in Path(folder).iterdir() if path.is_file())))
        sentence = "the film was not superb and the scene was awful in a long tedious evening"
        subprocess.run([sys.executable, "-c", LOAD, folder, sentence], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Trains a small AutoModel with R-AT, saves it and loads it elsewhere."
    )
    parser.add_argument("--model", choices=["textcnn", "bilstm"], default="textcnn")
    parser.add_argument("--max_steps", type=int, default=200, help="optimizer steps")
    arguments = parser.parse_args()
    main(arguments.model, arguments.max_steps)

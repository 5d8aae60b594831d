"""Fine-tuning a text classifier with R-AT: `RegularizedTrainer` in the place of `Trainer`.

    python examples/trainer.py

From data to a prediction, offline, in under a minute on a CPU: the restaurant reviews are made here, and so are the
tokenizer and the model. For a checkpoint of your own, replace `make_tokenizer` and `make_model` by `from_pretrained`.

What differs from fine-tuning with Transformers is one import, one class and one argument: `regularizer=rat(...)`. At
every step R-AT also asks for the right answer at the perturbation of the word embeddings that raises the loss most,
and there for the same answer whatever dropout leaves out. Other methods: vat, rdrop, fgm, smart, ... (README.md).
"""

import argparse
import random
import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    TrainingArguments,
    pipeline,
    set_seed,
)

from hf_rat import RegularizedTrainer, rat

WORTH = {
    "awful": -2, "dreadful": -2, "horrid": -2, "bland": -1, "dull": -1, "stale": -1,
    "fine": 1, "fresh": 1, "pleasant": 1, "superb": 2, "excellent": 2, "splendid": 2,
}  # fmt: skip
SUBJECTS = ("soup", "bread", "wine", "cake", "fish", "staff", "music", "room", "garden")


def make_reviews(count: int, seed: int) -> Dataset:
    """Reviews such as "the soup was superb and the room was dull"; label 1 if they praise more than they blame."""
    rng = random.Random(seed)
    rows = []
    while len(rows) < count:
        words = rng.choices(list(WORTH), k=3)
        worth = sum(WORTH[word] for word in words)
        if worth != 0:
            text = " and ".join(f"the {rng.choice(SUBJECTS)} was {word}" for word in words)
            rows.append({"text": text, "label": int(worth > 0)})
    return Dataset.from_list(rows)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "was", "and", *SUBJECTS, *WORTH]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.125,  # word vectors of norm 1, as a pretrained BERT's: epsilon is measured against them
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "blame", 1: "praise"},
        label2id={"blame": 0, "praise": 1},
    )
    return BertForSequenceClassification(config)


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(max_steps: int) -> None:
    set_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)

    def tokenize(rows: dict) -> dict:
        return tokenizer(rows["text"], truncation=True)

    train = make_reviews(400, seed=1).map(tokenize, batched=True, remove_columns="text")
    test = make_reviews(1000, seed=2).map(tokenize, batched=True, remove_columns="text")
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=max_steps,
            learning_rate=1e-3,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=128,
            logging_first_step=True,
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
            regularizer=rat(epsilon=0.1, alpha=0.5),
        )
        trainer.train()  # logs loss, and its parts: loss_task, loss_adversarial_task, loss_adversarial_consistency
        print(trainer.evaluate())

    # The model is what it was before: any code of Transformers uses it.
    classify = pipeline("text-classification", model=trainer.model, tokenizer=tokenizer)
    sentence = "The soup was excellent and the staff was dull and the garden was pleasant"
    print(sentence, "->", classify(sentence)[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tunes a small BERT with R-AT and predicts a sentence.")
    parser.add_argument("--max_steps", type=int, default=200, help="optimizer steps")
    main(parser.parse_args().max_steps)

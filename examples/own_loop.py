"""A regularizer in a training loop of your own: Accelerate, gradient accumulation, no Trainer.

    python examples/own_loop.py
    accelerate launch examples/own_loop.py

`Regularization` is opened on the model that `accelerator.prepare` returns. `regularization.backward(batch)` takes the
place of `accelerator.backward(model(**batch).loss)`: it makes all forwards and backwards that the regularizer asks
for, scaled for the accumulation, and returns the parts of the loss. Two things are yours: `model.train()`, since
without dropout there is nothing to be consistent about, and `regularization.after_step()` after each step.

Data, offline: lists of numbers from 1 to 9, and whether their mean is above 5.
"""

import argparse
import random

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

from hf_rat import Regularization, rat

PAD, CLS = 0, 10  # the tokens 1 to 9 are the numbers


def make_examples(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    examples: list[dict] = []
    while len(examples) < count:
        numbers = [rng.randint(1, 9) for _ in range(rng.randint(3, 12))]
        above = sum(numbers) - 5 * len(numbers)
        if above != 0:
            examples.append({"input_ids": [CLS, *numbers], "labels": int(above > 0)})
    return examples


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Pads to the longest row of the batch."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [PAD] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def make_model() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=11,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        initializer_range=0.125,  # word vectors of norm 1, as a pretrained BERT's: epsilon is measured against them
        pad_token_id=PAD,
    )
    return BertForSequenceClassification(config)


@torch.no_grad()
def evaluate(model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator) -> float:
    """Accuracy over all processes."""
    model.eval()
    right = total = 0
    for batch in loader:
        predictions = model(**batch).logits.argmax(-1)
        predictions, labels = accelerator.gather_for_metrics((predictions, batch["labels"]))
        right += int((predictions == labels).sum())
        total += len(labels)
    model.train()
    return right / total


def main(max_steps: int) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    set_seed(0)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = get_linear_schedule_with_warmup(optimizer, max_steps // 10, max_steps)
    train = DataLoader(make_examples(500, seed=1), batch_size=16, shuffle=True, collate_fn=collate)
    test = DataLoader(make_examples(500, seed=2), batch_size=128, collate_fn=collate)
    model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)

    # Opened after `prepare`, on the model that is called, so that it knows how gradients are exchanged.
    regularization = Regularization(rat(epsilon=0.1, alpha=0.5), model, accelerator=accelerator)

    model.train()
    step = 0
    while step < max_steps:
        for batch in train:
            with accelerator.accumulate(model):
                # Detached scalars: task, adversarial_task and adversarial_consistency; their sum is the loss.
                losses = regularization.backward(batch, step=step)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            regularization.after_step()  # moves the average of weights that `smart` stays near
            schedule.step()
            step += 1
            if step % 50 == 0 or step == max_steps:
                parts = ", ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
                accelerator.print(f"step {step}: {parts}; accuracy {evaluate(model, test, accelerator):.3f}")
            if step == max_steps:
                break
    regularization.close()  # takes the hooks off the model
    accelerator.end_training()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Trains a small BERT with R-AT in an Accelerate loop.")
    parser.add_argument("--max_steps", type=int, default=200, help="optimizer steps")
    main(parser.parse_args().max_steps)

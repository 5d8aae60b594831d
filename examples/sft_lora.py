"""Supervised fine-tuning of a causal language model: TRL's `SFTTrainer` with LoRA, regularized.

    pip install "hf-rat[trl,lora]" && python examples/sft_lora.py

`RegularizationMixin` goes in front of a Trainer class; the rest is TRL as you know it. Only the answers count, for the
task loss and for what R-AT compares alike, since prompts are masked. The adapter's weights are the only ones trained;
the perturbation enters at the (frozen) word embeddings.

Offline: prompts and answers are made here ("the opposite of hot is" -> "cold"), and the tiny Llama is built from its
config with a tokenizer of those words. As its weights are random, the adapter is larger than one would take for a
checkpoint, and the embeddings and the head are trained along (`modules_to_save`).
"""

import argparse
import random
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from hf_rat import RegularizationMixin, rat


class RegularizedSFTTrainer(RegularizationMixin, SFTTrainer):
    pass


PAIRS = ("hot cold", "big small", "old new", "wet dry", "fast slow", "high low", "open shut", "rich poor")
OPPOSITES = dict(pair.split() for pair in PAIRS)
OPPOSITES |= {second: first for first, second in OPPOSITES.items()}
FILLERS = ("please", "now", "well", "so")


def make_dialogues(count: int, seed: int) -> Dataset:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        word = rng.choice(list(OPPOSITES))
        rows.append(
            {"prompt": f"{rng.choice(FILLERS)} the opposite of {word} is", "completion": f" {OPPOSITES[word]}"}
        )
    return Dataset.from_list(rows)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word."""
    words = ["<pad>", "<unk>", "<s>", "</s>", "the", "opposite", "of", "is", *FILLERS, *OPPOSITES]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.1,
        initializer_range=0.125,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def main(max_steps: int) -> None:
    set_seed(0)
    tokenizer = make_tokenizer()
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=16,
        lora_alpha=32,
        lora_dropout=0.1,
        target_modules="all-linear",
        modules_to_save=["embed_tokens", "lm_head"],
    )
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            max_steps=max_steps,
            learning_rate=3e-3,
            per_device_train_batch_size=16,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
        )
        trainer = RegularizedSFTTrainer(
            model=make_model(tokenizer),
            args=args,
            train_dataset=make_dialogues(500, seed=1),
            processing_class=tokenizer,
            peft_config=lora,
            regularizer=rat(epsilon=0.1, alpha=0.5),
        )
        trainer.model.print_trainable_parameters()
        trainer.train()

    model = trainer.model.eval()
    for word in ("hot", "dry", "poor"):
        prompt = tokenizer(f"please the opposite of {word} is", return_tensors="pt").to(model.device)
        with torch.no_grad():
            tokens = model.generate(**prompt, max_new_tokens=1, do_sample=False)
        print(tokenizer.decode(tokens[0]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tunes a tiny Llama through LoRA with TRL and R-AT.")
    parser.add_argument("--max_steps", type=int, default=150, help="optimizer steps")
    main(parser.parse_args().max_steps)

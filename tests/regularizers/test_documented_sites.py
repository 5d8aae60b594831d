"""Each row of the table in docs/sites.md on a tiny model of the class that it names."""

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_sites_embeddings import gemma, seq2seq, seq2seq_batch
from test_sites_module import case
from tiny import PAD, tiny_batch, tiny_model
from transformers import GemmaConfig, GemmaForSequenceClassification, WhisperConfig, WhisperForConditionalGeneration

from hf_rat import Regularization, parse

PAGE = (Path(__file__).parents[2] / "docs" / "sites.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| [^|]+ \| `(\w+)` \| `([^`]+)` \|", PAGE, re.MULTILINE)


def whisper():
    torch.manual_seed(0)
    side = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}
    sides = {f"{where}_{name}": n for where in ("encoder", "decoder") for name, n in side.items()}
    ids = {"vocab_size": 60, "pad_token_id": PAD, "bos_token_id": 3, "eos_token_id": 2, "decoder_start_token_id": 3}
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    sizes = {"d_model": 16, "num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 8, "init_std": 0.3}
    model = WhisperForConditionalGeneration(WhisperConfig(**sides, **ids, **rates, **sizes)).train()
    return model, {"input_features": torch.randn(3, 4, 16), "labels": torch.randint(4, 60, (3, 5))}


def adapted():
    model = get_peft_model(tiny_model(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    return model, tiny_batch()


MODELS = {
    "BertForSequenceClassification": lambda: (tiny_model(), tiny_batch()),
    "AlbertForSequenceClassification": lambda: (tiny_model("albert"), tiny_batch()),
    "LlamaForSequenceClassification": lambda: (tiny_model("llama"), tiny_batch()),
    "GemmaForSequenceClassification": lambda: (gemma(GemmaForSequenceClassification, GemmaConfig), tiny_batch()),
    "T5ForConditionalGeneration": lambda: (seq2seq("t5"), seq2seq_batch()),
    "ViTForImageClassification": lambda: case("vit.embeddings"),
    "Wav2Vec2ForSequenceClassification": lambda: case("wav2vec2.feature_projection.projection"),
    "WhisperForConditionalGeneration": whisper,
    "PeftModelForSequenceClassification": adapted,
}


@pytest.mark.parametrize(("name", "expression"), ROWS)
def test_a_row_of_the_page(name, expression):
    model, batch = MODELS[name]()
    assert type(model).__name__ == name
    losses = Regularization(parse(expression), model).backward(batch)
    assert losses["adversarial_task"] > 1.001 * losses["task"]


def test_every_row_is_read():
    table = PAGE.split("\n\n")[2].splitlines()
    assert len(ROWS) == len(table) - 2
    assert {name for name, _ in ROWS} == set(MODELS)

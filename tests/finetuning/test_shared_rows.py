"""A second run of the same data and model, with another seed and method, tokenizes and counts words no more."""

import datasets
import pytest
from datasets import Dataset
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

from hf_rat.cli import glue, textcls
from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer
from hf_rat.finetuning import word_model


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Flags that name data, which nothing has been cached of, and a model."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split, rows in generated_pairs(train=12, validation=6).items():
        Dataset.from_dict(rows[:]).to_parquet(tmp_path / f"{split}.parquet")
    tokenizer = generated_tokenizer()
    BertForSequenceClassification(generated_config(tokenizer, 16, 1)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = [f"--{split}_file={tmp_path}/{split}.parquet" for split in ("train", "validation")]
    return tmp_path, [*data, "--do_train", "--do_eval", "--max_steps", "1", "--no_price"]


@pytest.mark.parametrize("kind", ["glue", "textcls"])
def test_it_is_shared(files, kind, monkeypatch):
    folder, words = files
    calls = []
    encode, count = PreTrainedTokenizerBase.__call__, word_model._read_words
    monkeypatch.setattr(
        PreTrainedTokenizerBase, "__call__", lambda *a, **k: [calls.append("encode"), encode(*a, **k)][1]
    )
    monkeypatch.setattr(word_model, "_read_words", lambda *a: [calls.append("count"), count(*a)][1])
    command = glue if kind == "glue" else textcls
    own = ["--model_name_or_path", f"{folder}/model"] if kind == "glue" else ["--model", "textcnn", "--min_count", "1"]
    seen = []
    for seed, method in enumerate(("plain", "rdrop")):
        command.run([*words, *own, "--seed", str(seed), "--reg", method, "--output_dir", f"{folder}/{method}"])
        seen.append(list(calls))
        calls.clear()
    assert "encode" in seen[0], "the test sees the tokenizer at work"
    assert ("count" in seen[0]) == (kind == "textcls")
    assert seen[1] == []

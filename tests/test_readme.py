"""The README is true: its script runs, its methods are all there with their papers, and what it links to exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from hf_rat.regularizers.recipe import RECIPES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOME = "https://github.com/hf-rat/hf-rat/"
RAW = "https://raw.githubusercontent.com/hf-rat/hf-rat/main/"


def test_it_is_read_in_two_minutes():
    assert sum(word != "|" for word in README.split()) <= 1000, "the strokes of a table are no words"


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"plain"}))
def test_every_method_has_a_row_with_its_paper(name):
    assert re.search(rf"^\| `{name}` \|.*\]\(https://[^)]+\) \|$", README, re.M), f"README.md has no row for {name}"


def test_links_are_absolute_and_what_they_name_exists():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://"), f"a package index shows {link} as a dead link"
        if link.startswith((HOME, RAW)):
            path = re.sub(r"^(blob|tree)/main/", "", link.removeprefix(HOME).removeprefix(RAW))
            assert (ROOT / path).exists(), f"{link} leads nowhere"


@pytest.fixture
def hub(tmp_path):
    """A folder that stands in for the model of the script, which is on the Hub."""
    words = [
        "[PAD]",
        "[UNK]",
        *[
            "a",
            "moving",
            "film",
            "dull",
            "and",
            "far",
            "too",
            "long",
            "I",
            "laughed",
            "all",
            "evening",
            "not",
            "worth",
            "the",
        ],
    ]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / re.search(r'^name = "([^"]+)"', README, re.M).group(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return tmp_path


def test_the_script_runs_as_it_stands(hub):
    script = re.search(r"```python\n(from datasets.*?)```", README, re.S).group(1)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=hub, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "loss_adversarial_consistency" in done.stdout or "train_loss" in done.stdout
    assert re.search(r"\[\{'label': 'LABEL_[01]', 'score': 0\.\d+\}\]", done.stdout), done.stdout
    assert "Regularizer rat(" in done.stdout + done.stderr, "the price is told"

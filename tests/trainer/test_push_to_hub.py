"""The real client of the Hub against a small Hub on loopback: push, and load in an interpreter without hf-rat."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, serve
from safetensors.torch import load

pytestmark = pytest.mark.slow

PUSH = """
import sys, torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from hf_rat import RegularizedTrainer, RegularizedTrainingArguments
from hf_rat.models import HANConfig, HANForSequenceClassification, TextCNNConfig, TextCNNForSequenceClassification

words = ["<pad>", "<unk>", "a", "b", "c", "."]
sizes = {"vocab_size": len(words), "embedding_size": 8}
ids = torch.tensor([[2, 3, 4], [4, 5, 3]])
torch.manual_seed(0)
han = HANForSequenceClassification(HANConfig(**sizes, hidden_size=4)).eval()
print(han.push_to_hub("somebody/han", commit_message="A network"))
torch.save(han(ids).logits, "han.pt")

inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
inner.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")
data = [{**tokenizer(text), "labels": label} for text, label in (("a b", 0), ("c .", 1), ("b b a", 0), ("c c c .", 1))]
model = TextCNNForSequenceClassification(TextCNNConfig(**sizes, num_filters=4))
arguments = RegularizedTrainingArguments(
    "trained", reg="rat(epsilon=0.1)", num_train_epochs=1, logging_steps=1, per_device_train_batch_size=2,
    report_to="none", disable_tqdm=True, use_cpu=True, push_to_hub=True, hub_model_id="somebody/textcnn",
    save_strategy="no",
)
trainer = RegularizedTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
trainer.train()
trainer.push_to_hub(commit_message="Trained", dataset="three letters")
torch.save(model.eval()(ids).logits, "textcnn.pt")
"""

LOAD = """
import sys
sys.modules["hf_rat"] = None  # whatever imports it fails
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

for name in ("han", "textcnn"):
    model = AutoModelForSequenceClassification.from_pretrained("somebody/" + name, trust_remote_code=True)
    logits = model(torch.tensor([[2, 3, 4], [4, 5, 3]])).logits
    torch.testing.assert_close(logits, torch.load(name + ".pt"), rtol=1e-5, atol=1e-6)
assert AutoTokenizer.from_pretrained("somebody/textcnn")("c a")["input_ids"] == [4, 2]
pipe = pipeline("text-classification", model="somebody/textcnn", trust_remote_code=True)
assert {one["label"] for one in pipe(["a b", "c c c ."])} <= {"LABEL_0", "LABEL_1"}
"""


def run(script: str, hub_url: str, folder: Path, home: str, isolated: bool = False):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    names = {"HF_ENDPOINT": hub_url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / home), "OMP_NUM_THREADS": "1"}
    # The client's other way for large files (Xet) is a compiled protocol of its own; this one is HTTP.
    names["HF_HUB_DISABLE_XET"] = "1"
    local = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, *(["-I"] if isolated else []), "-c", script]
    done = subprocess.run(
        command, cwd=folder, env={**kept, **names, **local}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A Hub that has both models, and the folder where the process that pushed them left their logits."""
    folder = tmp_path_factory.mktemp("hub")
    with serve() as hub:
        run(PUSH, hub.url, folder, "one")
        yield hub, folder
        assert not hub.crashes, hub.crashes[0]


def test_what_a_model_pushes(pushed):
    hub, _ = pushed
    files = hub.repositories["somebody/han"]
    code = {"modeling_han.py", "configuration_han.py", "recurrent.py", "recurrence.py", "recurrent_dropouts.py"}
    assert {"config.json", "model.safetensors", *code} <= set(files)
    assert "embeddings.weight" in load(files["model.safetensors"])
    assert files["model.safetensors"] in hub.uploads.values()  # by the protocol for large files
    assert hub.messages["somebody/han"] == ["A network"]


def test_what_a_trainer_pushes(pushed):
    hub, _ = pushed
    files = hub.repositories["somebody/textcnn"]
    assert {"model.safetensors", "modeling_textcnn.py", "configuration_textcnn.py", "tokenizer.json"} <= set(files)
    card = files["README.md"].decode()
    assert "- hf-rat" in card
    assert "rat(epsilon=0.1" in card
    assert "| loss_adversarial_task |" in card
    assert hub.messages["somebody/textcnn"][-1] == "Trained"


def test_load_elsewhere(pushed):
    hub, folder = pushed
    before = len(hub.requests)
    run(LOAD, hub.url, folder, "two", isolated=True)
    asked = hub.requests[before:]
    for name in ("han", "textcnn"):
        assert f"GET /somebody/{name}/resolve/{hub.commit_of('somebody/' + name)}/modeling_{name}.py" in asked

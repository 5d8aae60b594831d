"""Every block of Python in docs/ runs: what a page takes as given is made here, tiny."""

import ast
import builtins
import re
from pathlib import Path

import accelerate
import pytest
import tiny
import torch
from datasets import Dataset
from torch.nn import functional as F

import hf_rat
from hf_rat.regularizers import balls, perturbations, terms

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXTRAS = {"SFTTrainer": "trl", "SentenceTransformerTrainer": "sentence_transformers"}
"""A name in a block -> the package that must be there."""


def blocks():
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for number, found in enumerate(BLOCK.finditer(text)):
            yield pytest.param(found[1], id=f"{page.stem}-{number}")


def free_names(code):
    """Names that a block reads and never makes."""
    read, made = set(), set(dir(builtins))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.ImportFrom):
            made |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            made.add(node.name)
            arguments = node.args.args if isinstance(node, ast.FunctionDef) else []
            made |= {argument.arg for argument in arguments}
    return read - made


class WithState(torch.nn.Module):
    """A language model that takes and returns a state."""

    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(tiny.VOCABULARY, 8)
        self.dropout = torch.nn.Dropout(0.3)
        self.cell = torch.nn.GRU(8, 8, batch_first=True)
        self.decoder = torch.nn.Linear(8, tiny.VOCABULARY)

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, labels=None, state=None):
        hidden, state = self.cell(self.dropout(self.words(input_ids)), state)
        logits = self.decoder(self.dropout(hidden))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits, "state": state}


class Given:
    """What the pages speak of, each thing made when it is asked for."""

    def __init__(self, code, folder):
        self.code, self.folder = code, folder

    def model(self):
        if "MySFT" in self.code:
            from test_hosts_trl import TASK
            from tiny_tasks import task_model

            model = task_model(TASK, 0.1)
            self.tokenizer().save_pretrained(self.folder / "words")
            model.config._name_or_path = str(self.folder / "words")  # where SFTTrainer looks for a tokenizer
            return model
        if "SentenceTransformer" in self.code:
            from test_hosts_sentence_transformers import save_tiny_bert, sentence_model

            save_tiny_bert(self.folder / "words")
            return sentence_model(str(self.folder / "words"))
        return WithState() if "state" in self.code.lower() else tiny.tiny_model(dropout=0.1)

    def args(self):
        if "SentenceTransformer" in self.code:
            from sentence_transformers.sentence_transformer import SentenceTransformerTrainingArguments as Arguments
        elif "MySFT" in self.code:
            from trl import SFTConfig as Arguments
        else:
            from transformers import TrainingArguments as Arguments
        return Arguments(output_dir=str(self.folder / "out"), use_cpu=True, bf16=False, report_to="none")

    def batches(self):
        return [tiny.tiny_batch(seed=seed) for seed in range(2)]

    def trainer(self):
        args = hf_rat.RegularizedTrainingArguments(
            str(self.folder / "out"),
            max_steps=2,
            eval_strategy="epoch",
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        )
        rows = self.train()
        return hf_rat.RegularizedTrainer(tiny.tiny_model(dropout=0.1), args, train_dataset=rows, eval_dataset=rows)

    def chunks(self):
        ids = torch.randint(3, tiny.VOCABULARY, (4, 2, 5))
        return [{"input_ids": chunk, "labels": chunk} for chunk in ids]

    def train(self):
        return Dataset.from_dict({name: values.tolist() for name, values in tiny.tiny_batch().items()})

    def texts(self):
        return self.train().remove_columns("labels")

    def tokenizer(self):
        from test_hosts_trl import tokenizer

        return tokenizer()

    def prompts_and_completions(self):
        from test_hosts_trl import dataset

        return dataset()

    def pairs(self):
        return Dataset.from_dict({"one": ["w3 w4", "w5"], "two": ["w6", "w7 w8"]})

    def lora(self):
        from peft import LoraConfig

        return LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")

    def MultipleNegativesRankingLoss(self):
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        return MultipleNegativesRankingLoss

    def SFTTrainer(self):
        from trl import SFTTrainer

        return SFTTrainer

    def SentenceTransformerTrainer(self):
        from sentence_transformers import SentenceTransformerTrainer

        return SentenceTransformerTrainer

    def everything(self):
        """name -> value of what the block reads."""
        parts = {name: vars(room)[name] for room in (terms, balls, perturbations) for name in vars(room)}
        public = {name: getattr(hf_rat, name) for name in hf_rat.__all__}
        model = self.model() if re.search(r"\bmodel\b|regularization", self.code) else None
        plain = {
            **{"F": F, "model": model, "class_weights": torch.ones(3), "step": 0, "epsilon": 0.1, "alpha": 1.0},
            **{
                "passes": 2,
                "ids": torch.arange(2000) % tiny.VOCABULARY,
                "accelerator": accelerate.Accelerator(cpu=True),
            },
            **{"evaluate": lambda model: model.eval(), "args": None},
        }
        if model is not None:
            plain |= {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "loader": self.batches()}
            plain |= {"window": self.batches(), "chunks": self.chunks(), "labelled": self.train()}
        names = free_names(self.code)
        made = {name: getattr(self, name)() for name in names if name in vars(Given) and name != "model"}
        if "regularization" in names:
            made["regularization"] = hf_rat.Regularization("rdrop", model)
        return {**parts, **public, **plain, **made}


@pytest.mark.parametrize("code", list(blocks()))
def test_a_block_runs(code, tmp_path, monkeypatch):
    for name, package in EXTRAS.items():
        if name in code:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), Given(code, tmp_path).everything())

"""Counts that tell how a reader and a contributor fare with the code: rooms, arrows, files on the way of a step.

    python tests/support/census.py            # this checkout
    python tests/support/census.py FOLDER     # another one, of any commit

Prints one line per count. What a new regularizer, divergence, site, companion model or command has to touch is the
number of files that tests/support/additions.py changes, which test_additions.py makes in a copy and uses.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STEP = """
import inspect, sys
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_rat import RegularizedTrainer, RegularizedTrainingArguments, rat

sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
model = BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **sizes))
rows = [{"input_ids": [1, 2, 3, 4], "attention_mask": [1, 1, 1, 1], "labels": n % 2} for n in range(8)]
arguments = RegularizedTrainingArguments(
    output_dir=sys.argv[1], max_steps=2, per_device_train_batch_size=4, report_to="none", save_strategy="no",
    use_cpu=True, disable_tqdm=True, logging_strategy="no",
)
trainer = RegularizedTrainer(model, arguments, train_dataset=rows, regularizer=rat())
files, batches = set(), []
own = RegularizedTrainer.compute_loss
backward = trainer.accelerator.backward
watched = False

def see(frame, event, argument):
    path = frame.f_code.co_filename
    if event == "call" and "/hf_rat/" in path and path.endswith(".py"):
        files.add(path.split("/hf_rat/")[-1])

def compute_loss(*args, **kwargs):
    if trainer.state.global_step == 1:  # the first step looks at the model
        sys.setprofile(see)
    return own(trainer, *args, **kwargs)

class Watch(type(trainer)):
    pass

original = trainer.training_step

def training_step(*args, **kwargs):
    if trainer.state.global_step == 1:
        sys.setprofile(see)
    try:
        return original(*args, **kwargs)
    finally:
        sys.setprofile(None)

trainer.training_step = training_step
trainer.train()
print(len(files), *sorted(files))
"""


def rooms(package: Path) -> tuple[list[str], dict[str, set[str]]]:
    """Names at the top of the package, and from which room to which others there is an import."""
    top = sorted(
        p.stem
        for p in package.iterdir()
        if (p.suffix == ".py" or (p / "__init__.py").exists()) and p.stem != "__init__"
    )
    arrows: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        own = path.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module == package.name:
                names = [f"{package.name}.{alias.name}" for alias in node.names]
            found = {name.split(".")[1] for name in names if name.startswith(f"{package.name}.")}
            arrows.setdefault(own, set()).update(room for room in found if room in top and room != own)
    return top, arrows


def batch_arguments(package: Path) -> int:
    """Arguments that the engine gives the constructor of a batch for each micro-batch."""
    most = 0
    for path in package.rglob("regularization.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Batch":
                most = max(most, len(node.args) + len(node.keywords))
    return most


def files_of_a_step(root: Path, scratch: str) -> list[str]:
    """Files of the package that are entered from `training_step` to the last backward of a step of `rat`."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, scratch],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env={**__import__("os").environ, "PYTHONPATH": str(root)},
    )
    return done.stdout.strip().splitlines()[-1].split()[1:]


def main() -> None:
    import tempfile

    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    package = root / "hf_rat"
    top, arrows = rooms(package)
    modules = [name for name in top if (package / f"{name}.py").exists()]
    print(f"modules at the top of hf_rat: {len(modules)}; rooms and modules: {len(top)}")
    print(f"arrows between rooms: {sum(map(len, arrows.values()))}")
    with tempfile.TemporaryDirectory() as scratch:
        files = files_of_a_step(root, scratch)
    print(f"files entered in a step of rat: {len(files)} ({' '.join(files)})")
    print(f"arguments of a batch: {batch_arguments(package)}")


if __name__ == "__main__":
    main()

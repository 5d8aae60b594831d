"""Counts that tell how a reader and a contributor fare with the code: rooms, arrows, files on the way of a step.

    python tests/support/census.py            # this checkout
    python tests/support/census.py FOLDER     # another one, of any commit

Prints one line per count. The files of each addition are those that additions.py touches in this checkout, which
test_additions.py makes in a copy and uses.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from additions import ADDITIONS, count

ROOT = Path(__file__).resolve().parents[2]

# Trains for two steps and prints the files that are entered in the second: the first one also looks at the model.
STEP = """
import sys

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
files = set()
training_step = trainer.training_step


def see(frame, event, argument):
    path = frame.f_code.co_filename
    if event == "call" and "/hf_rat/" in path and path.endswith(".py"):
        files.add(path.split("/hf_rat/")[-1])


def seen_step(*args, **kwargs):
    if trainer.state.global_step == 1:
        sys.setprofile(see)
    try:
        return training_step(*args, **kwargs)
    finally:
        sys.setprofile(None)


trainer.training_step = seen_step
trainer.train()
print(*sorted(files))
"""


def rooms(package: Path) -> list[str]:
    """Names of the folders and modules at the top of the package."""
    found = (path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
    return sorted(path.stem for path in found if path.stem != "__init__")


def imports(path: Path, package: str) -> Iterator[str]:
    """Full names of what a file imports from the package, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(f"{package}."))
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            if node.module == package:
                yield from (f"{package}.{alias.name}" for alias in node.names)
            elif node.module.startswith(f"{package}."):
                yield node.module


def arrows(package: Path) -> set[tuple[str, str]]:
    """(room, another room that it imports from)."""
    top = rooms(package)
    found = set()
    for path in package.rglob("*.py"):
        own = path.relative_to(package).parts[0].removesuffix(".py")
        for name in imports(path, package.name):
            other = name.split(".")[1]
            if other in top and other != own:
                found.add((own, other))
    return found


def batch_arguments(package: Path) -> int:
    """How many arguments the constructor of a batch is given for each micro-batch."""
    calls = (
        node
        for path in package.rglob("regularization.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Batch"
    )
    return max((len(call.args) + len(call.keywords) for call in calls), default=0)


def files_of_a_step(root: Path) -> list[str]:
    """Files of the package that are entered from `training_step` to the last backward of a step of `rat`."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", STEP, scratch]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip().splitlines()[-1].split()


def main() -> None:
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    package = root / "hf_rat"
    modules = [name for name in rooms(package) if (package / f"{name}.py").exists()]
    print(f"modules at the top of hf_rat: {len(modules)}; rooms and modules: {len(rooms(package))}")
    print(f"arrows between rooms: {len(arrows(package))}")
    files = files_of_a_step(root)
    print(f"files entered in a step of rat: {len(files)} ({' '.join(files)})")
    print(f"arguments of a batch: {batch_arguments(package)}")
    if root == ROOT:
        for what, touched in ADDITIONS.items():
            print(f"files of a new {what}: {count(touched)} ({' '.join(touched)})")


if __name__ == "__main__":
    main()

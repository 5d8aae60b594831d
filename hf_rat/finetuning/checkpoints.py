"""Where a run writes, and whether a checkpoint is whole before anything is read from it."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_rat.data.files import one_line

RUNS = "runs"
"""Where runs without --output_dir are written, one fresh folder each."""

_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
# The Trainer's own state. Each is one zip archive, as torch.save writes it; a run may lack some of them.
_ARCHIVES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def checkpoint_problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None when it is whole.

    Sizes, headers and checksums are read; nothing is unpickled, and training_args.bin is not opened.

    Args:
        checkpoint: the folder `checkpoint-<step>`.
    """
    if not checkpoint.is_dir():
        return "there is no such folder"
    # The Trainer writes this file last: a save that was cut short has none.
    if not (checkpoint / _STATE).is_file():
        return f"{_STATE} is missing, so the save was not finished"
    weights = sorted(checkpoint.glob("*.safetensors"))
    sharded = [
        path for path in checkpoint.iterdir() if path.is_dir() and re.match(r"global_step|pytorch_model", path.name)
    ]
    if not weights and not sharded:
        return "there is no model.safetensors or adapter_model.safetensors"
    for path in (checkpoint / _STATE, *sorted(checkpoint.glob("*.safetensors.index.json"))):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"{path.name} is not complete JSON"
        absent = [name for name in set(content.get("weight_map", {}).values()) if not (checkpoint / name).is_file()]
        if absent:
            return f"{path.name} names {absent[0]}, which is missing"
    for path in weights:
        try:
            with safe_open(path, framework="pt"):  # which compares the file's size with its header
                pass
        except SafetensorError as error:
            return f"{path.name} is cut short or damaged ({one_line(error)})"
    for path in (path for pattern in _ARCHIVES for path in sorted(checkpoint.glob(pattern))):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile:
            return f"{path.name} is cut short or damaged"
        if damaged is not None:
            return f"{path.name} is damaged (checksum of {damaged})"
    return None


def resume_point(output_dir: Path, asked: str | bool | None) -> Path | None:
    """The checkpoint that training continues from.

    Args:
        output_dir: the run's folder.
        asked: what `--resume_from_checkpoint` was given: a folder, True (also "true") for the newest one in
            `output_dir`, or None (also "false") to start afresh.

    Raises:
        ValueError: `output_dir` is not empty and nothing is to be resumed; there is no checkpoint; or the
            checkpoint is not whole, in which case the newest one that is gets named.
    """
    flag = "--resume_from_checkpoint"
    if asked is None or str(asked).lower() == "false":
        if output_dir.is_dir() and any(output_dir.iterdir()):
            raise ValueError(
                f"--output_dir {str(output_dir)!r} is not empty: give another folder, or {flag} to continue its run"
            )
        return None
    if str(asked).lower() == "true":
        found = checkpoints(output_dir)
        if not found:
            raise ValueError(f"{flag}: there is no checkpoint in --output_dir {str(output_dir)!r}")
        checkpoint = found[0]
    else:
        checkpoint = Path(str(asked))
    problem = checkpoint_problem(checkpoint)
    if problem is None:
        return checkpoint
    siblings = (path for path in checkpoints(checkpoint.parent) if path.name != checkpoint.name)
    whole = next((path for path in siblings if checkpoint_problem(path) is None), None)
    offer = (
        f"the newest whole one is {flag} {whole}" if whole is not None else "no other checkpoint beside it is whole"
    )
    raise ValueError(f"{flag} {checkpoint}: {problem}; {offer}")


def fresh_folder(root: Path, stem: str) -> Path:
    """Make and return `root/stem-001`, or the next number that is free.

    Args:
        root: created when missing.
        stem: first part of the name.
    """
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = root / f"{stem}-{number:03d}"
        try:
            os.mkdir(folder)
        except FileExistsError:
            number += 1
        else:
            return folder


def require_writable(folder: Path) -> None:
    """Make a folder, or refuse what cannot be one.

    Raises:
        ValueError: it, or a part of its path, is a file, or it may not be written to.
    """
    flag = f"--output_dir {str(folder)!r}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{flag} cannot be made ({error.strerror}): give a folder that can be written to") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{flag} may not be written to: give another folder")


def remove_if_empty(folder: Path) -> None:
    """Remove a folder in which there is no file, and the folder `runs` around it, if it was the only one."""
    if not folder.is_dir() or any(path.is_file() for path in folder.rglob("*")):
        return
    shutil.rmtree(folder)
    if folder.parent.name == RUNS and not any(folder.parent.iterdir()):
        folder.parent.rmdir()

"""The folder of a run: before it begins, and when it does not come to its end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState

from hf_rat.finetuning.checkpoints import (
    RUNS,
    checkpoint_problem,
    checkpoints,
    fresh_folder,
    remove_if_empty,
    require_writable,
    resume_point,
)
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.processes import on_main
from hf_rat.finetuning.progress_bars import progress_bars
from hf_rat.finetuning.settings import require_settings


def prepare_folder(flags: Flags, stem: str) -> Path | None:
    """Settle `training.output_dir`, and return the checkpoint to continue from, or None.

    Args:
        flags: without --output_dir, the run gets a fresh folder runs/<stem>-<number>.
        stem: name of the command.

    Raises:
        ValueError: the folder is not empty, or what is to be resumed is not whole.
    """
    training = flags.training
    require_settings(flags)
    if training.device.type == "cpu" and "dataloader_pin_memory" not in flags.given:
        training.dataloader_pin_memory = False  # without an accelerator it does nothing but warn
    if "output_dir" not in flags.given:
        if training.resume_from_checkpoint is not None:
            raise ValueError("--resume_from_checkpoint needs --output_dir: the folder of the run that goes on")
        training.output_dir = str(on_main(lambda: fresh_folder(Path(RUNS), stem)))
        return None
    folder = Path(str(training.output_dir))
    on_main(lambda: require_writable(folder))
    if not training.do_train:
        return None
    return on_main(lambda: resume_point(folder, training.resume_from_checkpoint))


@contextmanager
def in_its_folder(flags: Flags) -> Iterator[None]:
    """A run: failed, it leaves no empty folder; interrupted, it says how to go on; at its end the processes part.

    --disable_tqdm holds for every bar in it.

    Args:
        flags: `training.output_dir` is the folder, which `prepare_folder` may still have to settle.

    Raises:
        KeyboardInterrupt: with that line, in the main process.
    """
    before = Path(str(flags.training.output_dir))
    existed = before.exists()
    try:
        with progress_bars(shown=not flags.training.disable_tqdm):
            yield
    except (Exception, KeyboardInterrupt) as error:
        if PartialState().is_main_process:
            folder = Path(str(flags.training.output_dir))
            if folder != before or not existed:
                remove_if_empty(folder)
            if isinstance(error, KeyboardInterrupt):
                _outlive_launcher()
                raise KeyboardInterrupt(f"interrupted: {_how_to_go_on(flags)}") from None
        raise
    # Gloo's threads, left to the end of the interpreter, now and then abort a process that has done all its work.
    PartialState().destroy_process_group()


def _how_to_go_on(flags: Flags) -> str:
    """After an interruption: what of a run is kept in its folder, and the flags that go on from there."""
    folder = Path(str(flags.training.output_dir))
    whole = next((path for path in checkpoints(folder) if checkpoint_problem(path) is None), None)
    if whole is None:
        return "no checkpoint had been written (--save_strategy steps --save_steps N writes one every N steps)"
    where = "" if "output_dir" in flags.given else f"--output_dir {folder} "
    return f"{whole} is kept; to go on, give the same command with {where}--resume_from_checkpoint {whole}"


def _outlive_launcher(seconds: float = 1.0) -> None:
    """`accelerate launch` answers Ctrl-C with a traceback and ends: what is said after that is seen."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return  # there is none, or it waits for its processes
    launcher, latest = os.getppid(), time.monotonic() + seconds
    while os.getppid() == launcher and time.monotonic() < latest:
        time.sleep(0.05)

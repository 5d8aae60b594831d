"""Several processes for a test: started, waited for, and ended by their own launcher."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROOMS = ("support", "regularizers", "passes", "engine", "trainer", "models")
PLACES = [str(ROOT), *(str(HERE.parent / room) for room in ROOMS)]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([*PLACES, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def start(command: list[str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=environment(**more), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """What it printed; a TimeoutError when it has not ended by then."""
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # not kill: a launcher then ends its processes
        printed, _ = process.communicate()
        raise TimeoutError(f"still running after {seconds} s\n{printed[-4000:]}") from None
    return printed


def run(command: list[str], seconds: float = 240, **more: str) -> str:
    process = start(command, **more)
    printed = finish(process, seconds)
    assert process.returncode == 0, printed[-4000:]
    return printed


def leave() -> None:
    """End this process, when all processes have come here and everything is written.

    Without the teardown of the interpreter, in which gloo's threads now and then abort a process that had finished.
    """
    with contextlib.suppress(RuntimeError):  # the others have left already
        dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

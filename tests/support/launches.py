"""Several processes for a test: started, waited for, and ended by their own launcher, or forked.

A process that begins with nothing takes six seconds to import torch, transformers and what comes with them, and a
launcher three more. Where a test is not about how a process begins, its processes are forked from a server that has
imported those packages, and none of our own modules.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROOMS = ("support", "regularizers", "passes", "engine", "trainer", "models")
PLACES = [str(ROOT), *(str(HERE.parent / room) for room in ROOMS)]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "accelerate.commands.launch",
        "datasets",
        "peft",
        "scipy.stats",
        "sklearn.metrics",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.bert.modeling_bert",
        "transformers.trainer",
    ]
)


# -- with their launcher ---------------------------------------------------------------------------------------------


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


# -- forked ----------------------------------------------------------------------------------------------------------


def fork(script: Path | str, *words: object, processes: int = 1, folder: Path = ROOT, **more: str) -> str:
    """`python script words...` in one process, or in several that know each other as torchrun's do: what was printed.

    Args:
        script: a file, or the name of a module, as in `python -m`.
        folder: where it runs.
        more: for its environment.
    """
    codes, printed = fork_and_wait(script, *words, processes=processes, folder=folder, **more)
    assert not any(codes), "\n".join(printed)[-4000:]
    return "\n".join(printed)


def fork_and_wait(
    script: Path | str, *words: object, processes: int = 1, folder: Path = ROOT, seconds: float = 240, **more: str
) -> tuple[list[int], list[str]]:
    """As `fork`, and no process ends another: the exit status of each (-9 if killed) and what it printed."""
    together: list[dict[str, str]] = [{}]
    if processes > 1:
        port, world = str(free_port()), str(processes)
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        together = [{**where, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    with tempfile.TemporaryDirectory() as outputs:
        files = [Path(outputs, str(rank)) for rank in range(processes)]
        forked = [
            SERVER.Process(target=_be, args=(script, list(map(str, words)), environment(**more, **own), folder, file))
            for own, file in zip(together, files, strict=True)
        ]
        for process in forked:
            process.start()
        end = time.monotonic() + seconds
        try:
            for process in forked:
                process.join(max(0.0, end - time.monotonic()))
        finally:
            still = [process.kill() for process in forked if process.exitcode is None]
        printed = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        if still:
            raise TimeoutError(f"{len(still)} still running after {seconds} s\n" + "\n".join(printed)[-4000:])
        return [process.exitcode for process in forked], printed


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _be(script: Path | str, words: Sequence[str], settings: Mapping[str, str], folder: Path, printed: Path) -> None:
    """In the forked process: become `python script words`."""
    with printed.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(settings)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.path[:] = [path for path in sys.path if not path.startswith(str(ROOT))]
    beside = script.parent if isinstance(script, Path) else folder
    sys.path[:0] = [str(beside), *settings["PYTHONPATH"].split(os.pathsep)]
    sys.argv = [str(script), *words]
    if isinstance(script, Path):
        runpy.run_path(str(script), run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)


def leave() -> None:
    """End this process, when all processes have come here and everything is written.

    Without the teardown of the interpreter, in which gloo's threads now and then abort a process that had finished.
    """
    with contextlib.suppress(RuntimeError):  # the others have left already
        dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

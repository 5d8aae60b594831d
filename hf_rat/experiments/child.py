"""What a process of a comparison does: one command."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import random
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from multiprocessing import connection
from typing import Any


def work(entry: str, command: Sequence[str], log: str, environment: dict[str, str], threads: int | None) -> None:
    """Make one command and end with its status.

    Args:
        entry: the module whose ``main(argv) -> int`` makes it.
        command: words after `hf-rat`.
        log: file of what is printed.
        environment: variables that this process has beside its parent's.
        threads: of torch; None leaves its own choice.
    """
    multiprocessing.set_start_method(None, force=True)  # workers that load batches start as in a process of its own
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    _print_to(log)
    os.environ.update(environment)
    sys.argv = ["hf-rat", *command]
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import_module("torch").set_num_threads(threads)
    _draw_anew()
    status = import_module(entry).main(command)
    atexit._run_exitfuncs()  # trackers send what they have left then; a process of multiprocessing ends without
    sys.exit(status)


def _end_with_parent() -> None:
    """End when the parent does, even if it is killed: the next comparison makes this run anew."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _print_to(log: str) -> None:
    """Send what this process and its libraries print to a file, line by line."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number in (1, 2):
        os.dup2(stream, number)
    os.close(stream)
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "buffering": 1, "closefd": False}
    sys.stdout, sys.stderr = (os.fdopen(number, "w", **options) for number in (1, 2))


def _draw_anew() -> None:
    """Give this process random numbers of its own where those of a fresh one come from the system.

    A fork has its parent's generators, and `datasets` names cached files that it cannot name otherwise by one.
    """
    for name, module in list(sys.modules.items()):
        if name == "datasets.fingerprint":
            module.fingerprint_rng.seed()
        elif name == "numpy":
            module.random.seed()
    random.seed()

"""Every command in a process of its own, which costs no imports."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

from hf_rat.experiments.child import work

_PATIENCE = 5.0  # seconds that a process has to end when it is asked to


class Processes:
    """Makes commands in processes that are forked off one that has imported everything, and computed nothing.

    A crash, a process killed for its memory, and whatever a run sets for its process stay in it. Where there is no
    forking (Windows), each process imports for itself.

    Args:
        entry: the module whose ``main(argv) -> int`` makes a command.
        preload: modules that are imported once for all.
        jobs: commands at a time. Several share the cores of the machine and, where there are several, each has a GPU
            of its own.
        devices: the GPUs, as CUDA_VISIBLE_DEVICES names them; None asks the machine.
    """

    def __init__(
        self, entry: str, preload: Sequence[str] = (), jobs: int = 1, devices: Sequence[str] | None = None
    ) -> None:
        self._entry = entry
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(kind)
        if kind == "forkserver":
            self._context.set_forkserver_preload(list(preload))
            forkserver.ensure_running()  # it imports while this process reads what is asked for
        self._threads = max(1, _cores() // jobs) if jobs > 1 and "OMP_NUM_THREADS" not in os.environ else None
        devices = (gpus() if devices is None else devices) if jobs > 1 else ()
        self._devices: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for job in range(jobs):
            self._devices.put(devices[job % len(devices)] if len(devices) > 1 else None)
        # Starting and asking for a process's status are not made for several threads.
        self._lock = threading.Lock()
        self._running: set[Any] = set()
        self._stopped = False

    def __call__(self, command: Sequence[str], log: Path) -> int:
        """Make a command, what it prints in `log`; its exit status, negative for a signal that ended it."""
        device = self._devices.get()
        try:
            return self._make(command, log, {} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        finally:
            self._devices.put(device)

    def _make(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> int:
        arguments = (self._entry, list(command), str(log), environment, self._threads)
        process = self._context.Process(target=work, args=arguments)
        with self._lock:
            if self._stopped:
                return 1
            process.start()
            self._running.add(process)
        connection.wait([process.sentinel])
        with self._lock:
            self._running.discard(process)
            process.join()
            return process.exitcode

    def stop(self) -> None:
        """End every process, at once."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
            for process in running:
                process.terminate()
        latest = time.monotonic() + _PATIENCE
        for process in running:
            if not connection.wait([process.sentinel], max(0.0, latest - time.monotonic())):
                process.kill()


def gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device.strip()]
    import torch  # heavy, and needed for several jobs only

    return [str(number) for number in range(torch.cuda.device_count())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

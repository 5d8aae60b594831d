"""Runs made at the same time, each waited for by a thread."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import Any, Protocol

from hf_rat.experiments.run import Run, Runner


class Watch(Protocol):
    """Is told of every run; several threads may tell it at once."""

    def begin(self, run: Run) -> None:
        """A run begins."""

    def end(self, run: Run, record: dict[str, Any]) -> None:
        """A run has ended, well or not."""


class Pool:
    """Makes runs, so many at a time, in the order in which they are submitted.

    Leaving the context waits for what was submitted; leaving it by an error ends what runs, and begins nothing more.

    Args:
        runner: makes a command.
        jobs: runs at a time.
        watch: is told what begins and ends.
    """

    def __init__(self, runner: Runner, jobs: int = 1, watch: Watch | None = None) -> None:
        self._runner, self._watch = runner, watch
        self._stopping = False
        self._full: OSError | None = None
        self._threads = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="hf-rat-run")

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stopping = True
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._runner.stop()
        self._threads.shutdown(wait=True)

    def submit(self, run: Run) -> Future[dict[str, Any]]:
        """Have a run made; its record, of which "finished" is False if it failed.

        The future raises OSError if the record could not be written, or the run failed, on a full disk; so do those
        after it.
        """
        return self._threads.submit(self._make, run)

    def make_missing(self, runs: Iterable[Run]) -> dict[Run, dict[str, Any]]:
        """The record of every run; those that have finished are kept.

        Raises:
            ValueError: a folder holds a run that another command made; nothing was begun.
        """
        kept = {run: run.finished() for run in runs}
        futures = {self.submit(run): run for run, record in kept.items() if record is None}
        made = {futures[future]: future.result() for future in as_completed(futures)}
        return {run: record or made[run] for run, record in kept.items()}

    def _make(self, run: Run) -> dict[str, Any]:
        if self._full is not None:
            raise self._full  # no further run is begun
        if self._watch is not None:
            self._watch.begin(run)
        try:
            record = run.make(self._runner)
            if self._watch is not None and not self._stopping:  # a run that was ended has not failed
                self._watch.end(run, record)
            if not record["finished"] and run.starved():
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, says {run.log}")
        except OSError as error:
            self._full = error
            raise
        return record

"""What runs, since when, how much is done, and how long is left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from hf_rat.experiments.estimate import Durations, duration
from hf_rat.experiments.run import Run


class Display:
    """Is told of every run by the pool, and tells people.

    Args:
        durations: says how long is left, and learns from what finishes.
        jobs: runs at a time.
    """

    def __init__(self, durations: Durations, jobs: int = 1) -> None:
        self._durations, self._jobs = durations, jobs
        self._lock = threading.Lock()
        self._waiting: list[Run] = []
        self._running: dict[Run, float] = {}
        self._done = self._all = 0
        self._bar: Any = None
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True, name="hf-rat-display")

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            self._bar = tqdm(bar_format="{desc}", dynamic_ncols=True, leave=False)
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._bar is not None:
            self._ticker.join()
            self._bar.close()

    def expect(self, runs: Sequence[Run], kept: int = 0) -> None:
        """Runs that will be made beside those that were expected before, and how many are done already."""
        with self._lock:
            self._waiting += runs
            self._all += len(runs) + kept
            self._done += kept

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            print(line, flush=True)
        else:
            tqdm.write(line)

    def begin(self, run: Run) -> None:
        with self._lock:
            self._running[run] = time.monotonic()
            # In a search, other runs of the same method stand for those that are not known before.
            name = (run.cell, run.method.entry)
            other = next((other for other in self._waiting if (other.cell, other.method.entry) == name), None)
            if other is not None:
                self._waiting.remove(other)
        if self._bar is None:
            self.say(f"{time.strftime('%H:%M:%S')} {run.name}: begins")

    def end(self, run: Run, record: dict[str, Any]) -> None:
        with self._lock:
            self._running.pop(run)
            self._done += 1
            if record["finished"]:
                self._durations.learn(run, record)
            left = self._left()
            place = f"[{self._done}/{self._all}]" if self._all >= self._done else f"[{self._done}]"
        took = duration(record["seconds"])
        if record["finished"]:
            self.say(f"{place} {run.name}: finished in {took}" + (f"; {left}" if left else ""))
        else:
            self.say(f"{place} {run.name}: FAILED after {took}, {run.reason(record)} (see {run.log})")

    def _left(self) -> str:
        """How long is left, in words; empty where nothing is left or known."""
        now = time.monotonic()
        seconds = self._durations.total([*self._waiting, *self._running], self._jobs)
        if not seconds:
            return ""
        gone = sum(now - since for since in self._running.values()) / self._jobs
        return f"about {duration(max(0.0, seconds - gone))} left"

    def _tick(self) -> None:
        """Show the state twice a second."""
        while not self._closed.wait(0.5):
            with self._lock:
                now = time.monotonic()
                running = [f"{run.name} ({duration(now - since)})" for run, since in self._running.items()]
                parts = [f"{self._done} of {self._all} done", self._left(), "; ".join(running)]
            text = ", ".join(part for part in parts if part)
            width = (self._bar.ncols or 80) - 1
            self._bar.set_description_str(text if len(text) <= width else f"{text[: width - 3]}...")

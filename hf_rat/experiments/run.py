"""One run of a comparison, and its record."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from hf_rat.data.whole_files import write_json
from hf_rat.experiments.method import Method
from hf_rat.experiments.provenance import git_state, versions
from hf_rat.experiments.words import without

# Flags that compare gives to a run, and that change nothing of what it learns: older records lack them.
ADDED = ("alone", "no_price", "run_name")


class Runner(Protocol):
    """Makes one `hf-rat` command; several threads may call it at once."""

    def __call__(self, command: Sequence[str], log: Path) -> int:
        """Make it, what it prints in `log`; its exit status."""

    def stop(self) -> None:
        """End what is being made, at once; what is asked for afterwards fails."""


@dataclass(frozen=True)
class Run:
    """One training run and where its traces lie.

    Args:
        method: what is compared.
        seed: of the run.
        folder: of what it writes.
        command: words after `hf-rat`; the last two are --output_dir and the folder.
        dataset: the data set as the user named it; None where all runs have the same.
        model: likewise.
    """

    method: Method
    seed: int
    folder: Path
    command: tuple[str, ...]
    dataset: str | None = None
    model: str | None = None

    @property
    def record(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def cell(self) -> tuple[str | None, str | None]:
        """Data set and model."""
        return self.dataset, self.model

    @property
    def name(self) -> str:
        """What people call it: data set, model, method and seed."""
        return ", ".join(part for part in (*self.cell, self.method.shown, f"seed {self.seed}") if part)

    @property
    def shown(self) -> str:
        """The command as one types it."""
        return shlex.join(["hf-rat", *self.command])

    def finished(self) -> dict[str, Any] | None:
        """The record of this run if it has finished, else None.

        Raises:
            ValueError: the folder holds a run that another command made, or something that is no run of ours.
        """
        if not self.record.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ValueError(f"{self.folder} is not empty and holds no run of compare; give another --output_dir")
            return None
        record = read_record(self.record)
        if _essence(shlex.split(record["command"])) != _essence(shlex.split(self.shown)):
            raise ValueError(
                f"{self.record} was made by another command ({record['command']}); "
                "give another --output_dir or remove that run"
            )
        return record if record["finished"] else None

    def make(self, runner: Runner) -> dict[str, Any]:
        """Run it, from the start: what an interrupted attempt has left is removed.

        Returns:
            The record, which also lies beside the folder; "finished" is False if the command failed.
        """
        record: dict[str, Any] = {
            "method": self.method.entry,
            **({} if self.method.label is None else {"label": self.method.label}),
            "dataset": self.dataset,
            "model": self.model,
            "seed": self.seed,
            "command": self.shown,
            "finished": False,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "git": git_state(),
        }
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        write_json(self.record, record)
        begun = time.monotonic()
        code = runner(self.command, self.log)
        record |= {"seconds": round(time.monotonic() - begun, 3), "status": code}
        results = self.folder / "all_results.json"
        if code == 0 and results.exists():
            record |= {"finished": True, "results": json.loads(results.read_text(encoding="utf-8"))}
        write_json(self.record, record)
        return record

    def reason(self, record: Mapping[str, Any]) -> str:
        """Why it failed, in one line: the error that it printed, or else its last line; the signal that ended it."""
        status = record.get("status", 1)
        if status < 0:
            return f"ended by {signal.Signals(-status).name}" + (", as for want of memory" if status == -9 else "")
        lines = [line.strip() for line in self.log_end().splitlines() if line.strip()]
        if not lines:
            return f"exit status {status}, nothing printed"
        # Trackers say goodbye after it.
        told = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception)\b", line)]
        return (told or lines)[-1].removeprefix("error: ")

    def starved(self) -> bool:
        """Whether it seems to have failed because the disk is full."""
        signs = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]
        return any(sign in self.log_end() for sign in signs) or shutil.disk_usage(self.log.parent).free < 2**20

    def log_end(self) -> str:
        """The last few thousand characters that it printed."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4000))
            return file.read().decode("utf-8", "replace")


def _essence(words: Sequence[str]) -> list[str]:
    """What decides the outcome of a run: all but its folder, which may move, and what compare adds."""
    return without(words[:-2], ADDED)


def read_record(path: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({' '.join(str(error).split())}); remove it to redo the run"
        ) from error
    if not isinstance(record, dict) or not {"method", "seed", "command", "finished"} <= record.keys():
        raise ValueError(f"{path} is no record of a run; give another --output_dir or remove it")
    return record

"""How long runs take: by runs that have finished, else by a short probe of the baseline in each cell.

A method's training takes as many times the plain one as its passes say; starting and evaluations take the same for
all.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from hf_rat.experiments.choosing import sampled
from hf_rat.experiments.experiment import Experiment
from hf_rat.experiments.pool import Pool
from hf_rat.experiments.run import Run
from hf_rat.experiments.words import value_of

STEPS = 10
"""Training steps of a probe."""
# A step after every warm-up and delay that a recipe may have.
_LATE = 10**9
_Cell = tuple[str | None, str | None]


class Timing(NamedTuple):
    """Seconds of a run: what every method takes alike, and what plain training takes."""

    fixed: float
    training: float

    def seconds(self, run: Run) -> float:
        return self.fixed + (factor(_expression(run)) * self.training if self.training else 0.0)


class Durations:
    """What is known of how long runs take; it learns from every run that finishes."""

    def __init__(self) -> None:
        self.finished: dict[_Cell, list[Timing]] = {}
        self.probed: dict[_Cell, Timing] = {}
        self.failed: dict[_Cell, str] = {}
        self._own: dict[tuple[_Cell, str], list[float]] = {}

    def learn(self, run: Run, record: Mapping[str, Any]) -> None:
        """Take a finished run into account."""
        results = record["results"]
        training = float(results.get("train_runtime", 0))
        evaluation = sum(results.get(name, 0) for name in ("eval_runtime", "test_runtime"))
        seconds = record.get("seconds", training + evaluation)  # older records have no time of the whole
        plain = training / factor(_expression(run)) if training else 0.0
        self.finished.setdefault(run.cell, []).append(Timing(seconds - training, plain))
        self._own.setdefault((run.cell, run.method.shown), []).append(seconds)

    def seconds(self, run: Run) -> float | None:
        """What a run is expected to take; None where nothing is known."""
        own = self._own.get((run.cell, run.method.shown))
        if own:
            return mean(own)
        timings = self.finished.get(run.cell) or ([self.probed[run.cell]] if run.cell in self.probed else [])
        return mean(timing.seconds(run) for timing in timings) if timings else None

    def total(self, runs: Sequence[Run], jobs: int) -> float | None:
        """What runs are expected to take, so many at a time; those of which nothing is known are taken for average."""
        known = [seconds for seconds in map(self.seconds, runs) if seconds is not None]
        if not known:
            return None if runs else 0.0
        return max(mean(known) * len(runs) / min(jobs, len(runs)), *known)

    def probe(self, experiment: Experiment, runs: Sequence[Run], pool: Pool) -> None:
        """Time a few steps of the baseline in each cell that some of the runs are in and of which nothing is known."""
        unknown = list(dict.fromkeys(run.cell for run in runs if self.seconds(run) is None))
        with tempfile.TemporaryDirectory(prefix="hf-rat-probe-") as folder:
            elsewhere = replace(sampled(experiment), output=Path(folder), methods=(experiment.reference,))
            probes = [run for run in elsewhere.plan() if run.seed == experiment.seeds[0] and run.cell in unknown]
            futures = {run: pool.submit(_short(run)) for run in probes}
            for run, future in futures.items():
                record = future.result()
                if record["finished"]:
                    self.probed[run.cell] = _timing(run, record)
                else:
                    self.failed[run.cell] = run.reason(record)

    def basis(self, runs: Sequence[Run]) -> str:
        """What an estimate for these runs rests on, in words."""
        cells = dict.fromkeys(run.cell for run in runs)
        finished = sum(len(self.finished.get(cell, ())) for cell in cells)
        probed = sum(cell in self.probed for cell in cells)
        parts = [f"{_count(finished, 'finished run')}"] if finished else []
        parts += [f"{_count(probed, 'short run')} of {STEPS} steps and the passes of each method"] if probed else []
        text = f"by {' and by '.join(parts)}" if parts else "nothing is known"
        wrong = [(cell, self.failed[cell]) for cell in cells if cell in self.failed]
        return text + "".join(
            f"; the short run failed{' in ' + ', '.join(filter(None, cell)) if any(cell) else ''} ({reason})"
            for cell, reason in wrong
        )


@functools.cache
def factor(expression: str) -> float:
    """How many times the time of plain training a regularizer takes; 1 if it cannot be read, which its run tells."""
    from hf_rat.engine.cost import rehearse  # imports torch
    from hf_rat.regularizers.expressions import parse

    try:
        regularizer = parse(expression)
    except ValueError:
        return 1.0
    return rehearse(regularizer, _LATE).time / rehearse(parse("plain"), _LATE).time


def _expression(run: Run) -> str:
    """Of its regularizer, with values in place of ranges."""
    return value_of(run.command, "reg") or "plain"


def _short(run: Run) -> Run:
    """The same with few steps, and without what reaches beyond its folder."""
    words = [*run.command[:-2], "--max_steps", str(STEPS), "--report_to", "none"]
    if value_of(words, "push_to_hub") is not None:
        words += ["--push_to_hub", "False"]
    if value_of(words, "submission_dir") is not None:
        words += ["--submission_dir", str(run.folder.with_name("submission"))]
    return replace(run, command=(*words, *run.command[-2:]))


def _timing(run: Run, record: Mapping[str, Any]) -> Timing:
    """What the whole run would take, by its probe."""
    results, seconds = record["results"], record["seconds"]
    if "train_runtime" not in results:
        return Timing(seconds, 0.0)
    import torch  # the Trainer's arguments are torch's way of writing

    args = torch.load(run.folder / "training_args.bin", weights_only=False)
    history = json.loads((run.folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    # The entry of the whole training ends it; what was evaluated before took part of its time.
    within = history[: next(index for index, log in enumerate(history) if "train_runtime" in log)]
    stepping = results["train_runtime"] - sum(log.get("eval_runtime", 0) for log in within)
    done = max(log["step"] for log in history)
    asked = int(value_of(run.command, "max_steps") or 0)
    steps = asked if asked > 0 else math.ceil(args.num_train_epochs * done / results["epoch"])
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    evaluations = {"no": 0.0, "epoch": steps * results["epoch"] / done}.get(strategy)
    if evaluations is None:
        every = args.eval_steps or args.logging_steps
        evaluations = 1 / every if every < 1 else steps / every
    during = evaluations * results.get("eval_runtime", 0)
    plain = max(0.0, stepping) / done / factor(_expression(run))
    return Timing(seconds - results["train_runtime"] + during, plain * steps)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

"""What a fine-tuning command says at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from hf_rat.data.submission import submission_state
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.job import Job
from hf_rat.finetuning.processes import on_main, say


def summarize(flags: Flags, job: Job, results: Mapping[str, float]) -> None:
    """The one summary at the end: a table of the scores, and where things are."""
    names = [*job.task.metrics, *(["combined_score"] if len(job.task.metrics) > 1 else []), "loss"]
    if flags.training.prediction_loss_only:
        names = ["loss"]
    lines = [["split", "rows", *names]]
    for suffix, rows in job.evaluation.items():
        end = f"_{suffix}" if suffix else ""
        values = [f"{results[f'eval_{name}{end}']:.4f}" for name in names]
        lines.append([f"validation{end}", f"{len(rows)}", *values])
    for test in job.prediction:
        if test.held_out.labelled:
            lines.append(["test", f"{len(test.rows)}", *[f"{results[f'test_{name}']:.4f}" for name in names]])
    if len(lines) > 1:
        say("\n" + table(lines))
    rows = f"{len(job.train)} rows" if isinstance(job.train, Dataset) else "a stream"
    summarize_training(flags, results, None if job.train is None else rows)
    if job.prediction and flags.data.submission_dir is not None:
        directory = Path(flags.data.submission_dir)
        say(on_main(lambda: submission_state(directory)))


def summarize_training(flags: Flags, results: Mapping[str, float], trained_on: str | None) -> None:
    """The regularizer, the training loss and its price, and where things are.

    Args:
        flags: of the run.
        results: of the run.
        trained_on: in words; None where nothing was trained.
    """
    say(f"Regularizer: {flags.training.regularizer()!r}")
    if trained_on is not None:
        say(training_loss(results, trained_on))
    if "train_time_factor" in results:
        own, plain = results["train_tokens_per_second"], results["train_plain_tokens_per_second"]
        factor = results["train_time_factor"]
        say(f"Speed: {own:,.0f} tokens/s, {factor:.2f} times the time of plain steps ({plain:,.0f} tokens/s)")
    say(f"Written to {flags.training.output_dir}: {', '.join(_written(Path(str(flags.training.output_dir))))}")


def training_loss(results: Mapping[str, float], trained_on: str) -> str:
    """A line: the mean training loss, and what it is the sum of. It is not the loss that evaluation reports.

    Args:
        results: of a run that trained.
        trained_on: in words: how many rows, or a stream.
    """
    parts = {
        name.removeprefix("train_loss_").replace("_", " "): value
        for name, value in results.items()
        if name.startswith("train_loss_")
    }
    made_of = " + ".join(f"{name} {value:.4f}" for name, value in parts.items())
    return f"Training loss on {trained_on}: {results['train_loss']:.4f}" + (f" = {made_of}" if parts else "")


def _written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def table(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the head, as aligned text."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "  ".join("-" * width for width in widths), *text[1:]])


def read_results(folder: Path) -> dict[str, float] | None:
    """The all_results.json of a finished run, or None."""
    path = folder / "all_results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

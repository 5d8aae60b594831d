"""What a fine-tuning command says at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from hf_rat.commands.finetune import Job, on_main, say
from hf_rat.commands.flags import Flags
from hf_rat.data.submission import missing_files, pack, problems


def summarize(flags: Flags, job: Job, results: Mapping[str, float]) -> None:
    """The one summary at the end: a table of the scores, and where things are."""
    names = [*job.task.metrics, *(["combined_score"] if len(job.task.metrics) > 1 else []), "loss"]
    lines = [["split", "rows", *names]]
    if job.train is not None:
        count = f"{len(job.train)}" if isinstance(job.train, Dataset) else "streamed"
        # The training loss is a sum of the regularizer's parts, which has no place in a column of task losses.
        lines.append(["train", count, *[""] * len(names)])
    for suffix, rows in job.evaluation.items():
        end = f"_{suffix}" if suffix else ""
        values = [f"{results[f'eval_{name}{end}']:.4f}" for name in names]
        lines.append([f"validation{end}", f"{len(rows)}", *values])
    for asked in job.prediction:
        if asked.held_out.labelled:
            lines.append(["test", f"{len(asked.rows)}", *[f"{results[f'test_{name}']:.4f}" for name in names]])
    if len(lines) > 1:
        say("\n" + table(lines))
    say(f"Regularizer: {flags.training.regularizer()!r}")
    if job.train is not None:
        say(f"Training loss, mean over the run, all of its parts: {results['train_loss']:.4f}")
    if "train_tokens_per_second" in results:
        own, plain = results["train_tokens_per_second"], results["train_plain_tokens_per_second"]
        say(f"Speed: {own:,.0f} tokens/s, {plain / own:.2f} times the time of plain steps ({plain:,.0f} tokens/s)")
    say(f"Written to {flags.training.output_dir}: {', '.join(_written(Path(str(flags.training.output_dir))))}")
    if job.prediction and flags.data.submission_dir is not None:
        say(submission_state(Path(flags.data.submission_dir)))


def submission_state(directory: Path) -> str:
    """Pack the submission when it is complete, and say in a line what there is or what is missing."""
    archive = on_main(lambda: pack(directory))
    if archive is not None:
        return f"Submission: {archive} is complete"
    missing = missing_files(directory)
    wrong = [problem for problem in problems(directory) if not problem.endswith(": missing")]
    parts = [f"still missing {', '.join(missing)}"] if missing else []
    parts += [f"not acceptable: {'; '.join(wrong)}"] if wrong else []
    return f"Submission: {directory}: {'; '.join(parts)}"


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

"""Folders as `hf-rat compare` leaves them, made by hand."""

import json


def made(folder, method, scores, **more):
    """Records of one method: seed -> its results, or None for a run that failed.

    Args:
        folder: of the method.
        method: its entry.
        scores: seed -> results.
        more: further keys of every record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for seed, results in scores.items():
        record = {
            "method": method,
            "seed": seed,
            "command": f"hf-rat glue --reg {method} --seed {seed} --output_dir {folder.name}/seed-{seed}",
            "finished": results is not None,
            **({} if results is None else {"results": results}),
            **more,
        }
        (folder / f"seed-{seed}.json").write_text(json.dumps(record), encoding="utf-8")


def accuracies(*values, seconds=None, split="eval"):
    """Results of the seeds 1, 2, ...: an accuracy each, and training seconds if they are given."""
    found = {}
    for at, value in enumerate(values):
        found[at + 1] = {f"{split}_accuracy": value, f"{split}_loss": 1 - value, f"{split}_runtime": 9.0}
        if seconds is not None:
            found[at + 1]["train_runtime"] = float(seconds[at])
    return found

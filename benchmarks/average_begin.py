"""Averages of the weights that begin at several moments of one run, scored at its end.

    python benchmarks/average_begin.py --output results/default/average_begin/imdb_160_plain_1.json \\
        -- textcls --do_train --do_eval --dataset_name imdb --model textcnn --logging_steps 2 ... --output_dir out
    python benchmarks/average_begin.py --table results/default/average_begin     # what a threshold would have done

An average does not touch the training, so one run tells what each of them would have scored: the mean of the weights
after each step from 0.4, 0.5, ... 0.9 of the run on, in float64. The JSON also has the mean task loss of each tenth of
the run over that of the first, which `swa(below=)` reads.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

TENTHS = range(4, 10)
THRESHOLDS = (1.0, 0.5, 0.4, 0.3, 0.2, 0.1)


class Sums(TrainerCallback):
    """The sum of the weights after each step so far, as it was at the end of each tenth of the run."""

    def __init__(self) -> None:
        self.total: dict[str, Tensor] = {}
        self.at: dict[int, tuple[int, dict[str, Tensor]]] = {}
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (tenth := 10 * state.global_step // state.max_steps) >= TENTHS[0]:
            weights = {
                name: value.double()
                for name, value in kwargs["model"].state_dict().items()
                if value.is_floating_point()
            }
            self.at.setdefault(tenth, (self.steps, dict(self.total)))
            self.total = {name: value + self.total.get(name, 0) for name, value in weights.items()}
            self.steps += 1


def tenths(log_history: list[dict[str, Any]]) -> list[float]:
    """The mean task loss of each tenth of a run over that of the first."""
    losses = [(log["step"], log.get("loss_task", log["loss"])) for log in log_history if "loss" in log]
    end = losses[-1][0]
    means = [
        mean(loss for step, loss in losses if tenth * end < 10 * step <= (tenth + 1) * end) for tenth in range(10)
    ]
    return [round(value / means[0], 4) for value in means]


def run(argv: list[str], output: Path) -> None:
    """Run a command of ours, and score the averages when its training has ended."""
    train = Trainer.train

    def train_and_score(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        sums = Sums()
        self.add_callback(sums)
        trained = train(self, *args, **kwargs)
        model: Any = self.model
        own = {name: value.clone() for name, value in model.state_dict().items()}
        scores = {"own": self.evaluate()}
        for tenth in TENTHS:
            steps, before = sums.at[tenth]
            average = {name: (sums.total[name] - before.get(name, 0)) / (sums.steps - steps) for name in sums.total}
            model.load_state_dict(own | average)
            scores[f"{tenth / 10}"] = self.evaluate()
        model.load_state_dict(own)
        kept = {of: {name: row[f"eval_{name}"] for name in ("accuracy", "loss")} for of, row in scores.items()}
        found = {"tenths": tenths(self.state.log_history), "scores": kept}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found) + "\n", encoding="utf-8")
        return trained

    Trainer.train = train_and_score  # type: ignore[method-assign]
    if status := importlib.import_module(f"hf_rat.cli.{argv[0]}").main(argv[1:]):
        raise SystemExit(status)


def table(folder: Path) -> None:
    """Print what an average gains that begins in the second half of the run once the loss is below a threshold."""
    cells = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        cells[path.stem.rpartition("_")[0]].append(json.loads(path.read_text(encoding="utf-8")))
    print("| run | runs | loss at half | at the end |", " | ".join(f"below {t:g}" for t in THRESHOLDS), "|")
    for cell, found in cells.items():
        row = []
        for threshold in THRESHOLDS:
            gains = []
            for one in found:
                own, begun = one["scores"]["own"], (t for t in TENTHS if t > 4 and one["tenths"][t - 1] < threshold)
                taken = one["scores"].get(f"{next(begun, 0) / 10}", own)
                gains.append((100 * (taken["accuracy"] - own["accuracy"]), taken["loss"] / own["loss"]))
            row.append(f"{mean(gain for gain, _ in gains):+.1f}, {mean(ratio for _, ratio in gains):.3f}")
        shares = [mean(one["tenths"][tenth] for one in found) for tenth in (4, 9)]
        print(f"| {cell} | {len(found)} | {shares[0]:.2f} | {shares[1]:.2f} |", " | ".join(row), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path, metavar="DIR")
    parser.add_argument("command", nargs="*", help="after --: a command of hf-rat and its flags")
    given = parser.parse_args()
    if given.table:
        table(given.table)
    elif given.output and given.command:
        run(given.command, given.output)
    else:
        parser.error("give --output FILE and a command, or --table DIR")


if __name__ == "__main__":
    main()

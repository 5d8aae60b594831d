"""Build the files of a leaderboard, GLUE's or CLUE's, from the predictions of finished runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rat.cli._commands import Parser
from hf_rat.data.predictions import predictions_name, read_predictions
from hf_rat.data.submission import FILES, LEADERBOARDS, problems, submission_state, write_answers
from hf_rat.data.task import Task
from hf_rat.finetuning.blame import reported


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


def run(argv: Sequence[str]) -> None:
    """Find the predictions, check all of them, and only then write the files and say what is missing.

    Raises:
        ValueError: a folder is no run, several runs answer one test split, or an answer would be refused.
    """
    parser = Parser(
        prog="hf-rat submit",
        usage="%(prog)s glue|clue RUN [RUN ...] --output_dir DIR [--best]",
        description=f"{__doc__}\nA run is a folder that glue or textcls wrote with --do_predict. Files that DIR\n"
        "has of other tasks stay; the zip appears when the set is complete.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("leaderboard", choices=tuple(LEADERBOARDS), help="whose files")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a run")
    parser.add_argument("--output_dir", required=True, type=Path, metavar="DIR", help="folder of the files")
    best = "of several runs that answer one test split, take the one with the best score of validation"
    parser.add_argument("--best", action="store_true", help=best)
    arguments = parser.parse_args(list(argv))
    tasks, directory = LEADERBOARDS[arguments.leaderboard], arguments.output_dir
    parts = {predictions_name(task, part): name for name, (task, part) in FILES.items() if task in tasks}
    answers: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(arguments.runs):
        for path in _predictions(folder, parts, arguments.leaderboard):
            answers.setdefault(path.name, []).append(path)
    chosen = {}
    for name, paths in answers.items():
        task, part = FILES[parts[name]]
        path, why = (paths[0], "") if len(paths) == 1 else _best(paths, task, tasks, arguments.best)
        values = read_predictions(path, task)
        if len(values) != part.rows:
            raise ValueError(
                f"{path} has {len(values)} predictions, the leaderboard expects {part.rows} of {task.name}: "
                "predict the whole test split, without --max_predict_samples"
            )
        chosen[name] = (path, why, values)
    try:
        for name, (path, why, values) in chosen.items():
            written = write_answers(directory, *FILES[parts[name]], values)
            print(f"{written.name}: {path.parent}{why}")
        wrong = [problem for problem in problems(directory) if not problem.endswith(": missing")]
        if wrong:
            raise ValueError(f"--output_dir {str(directory)!r}: {'; '.join(wrong)}")
        print(submission_state(directory))
    except OSError as error:
        raise ValueError(f"--output_dir {str(directory)!r} cannot be written ({error.strerror or error})") from None


def _predictions(folder: Path, known: Mapping[str, str], leaderboard: str) -> list[Path]:
    """The files of predictions of a run.

    Raises:
        ValueError: the folder is no run, has none, or has some that the leaderboard does not take.
    """
    if not folder.is_dir():
        raise ValueError(f"RUN {str(folder)!r} is no folder; give the output folder of a run with --do_predict")
    found = sorted(folder.glob("predict_results*.txt"))
    if not found:
        run = any((folder / name).is_file() for name in ("all_results.json", "trainer_state.json"))
        kind = (
            "has no predictions: it ran without --do_predict"
            if run
            else "is no run: it holds no predict_results_*.txt"
        )
        raise ValueError(f"RUN {str(folder)!r} {kind}")
    for path in found:
        if path.name not in known:
            tasks = ", ".join(task.name for task in LEADERBOARDS[leaderboard])
            raise ValueError(f"{path} is of no task of the {leaderboard.upper()} leaderboard, which has {tasks}")
    return found


def _best(paths: Sequence[Path], task: Task, tasks: Sequence[Task], asked: bool) -> tuple[Path, str]:
    """The one of several runs with the best score of validation, and what to say of the choice.

    Raises:
        ValueError: nobody asked for a choice, or a run was not scored.
    """
    listed = ", ".join(str(path.parent) for path in paths)
    if not asked:
        raise ValueError(
            f"{len(paths)} runs answer {task.name}: {listed}; give one of them, "
            "or --best for the one with the best score of validation"
        )
    # AX has no validation split: the score is that of MNLI, whose model answers it.
    scored = next((other for other in tasks if other.also_predicts == task.name), task)
    score = f"eval_{'combined_score' if len(scored.metrics) > 1 else scored.metrics[0]}"
    values: list[float] = []
    for path in paths:
        value = _results(path.parent).get(score)
        if not isinstance(value, (int, float)):
            raise ValueError(
                f"--best: {path.parent}/all_results.json has no {score}: give it --do_eval, or leave it out"
            )
        values.append(value)
    best = max(values)
    tied = "" if values.count(best) == 1 else f", the first of {values.count(best)} with that score"
    return paths[values.index(best)], f" (best {score} of {len(paths)} runs, {best:.4f}{tied})"


def _results(folder: Path) -> dict[str, Any]:
    path = folder / "all_results.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    return found if isinstance(found, dict) else {}

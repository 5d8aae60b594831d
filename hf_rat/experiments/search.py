"""Values for ranges, chosen on held-back training rows, with as many trials for every method.

Beside a method's runs in a cell lie

    trials/trial-<n>/    a run of one setting with one seed, scored on held-back rows; .log and .json as for any run
    search.json          trials, settings, ranges, what was chosen, its mean scores on held-back rows, and the log

A trial is a setting and a seed. A method with fewer settings than trials repeats them with further seeds, and what
counts is the mean. Trials are suggested one after the other from those before, whatever else runs at the time, so
that neither the number of jobs nor an interruption changes a choice.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from itertools import islice
from statistics import mean
from types import ModuleType
from typing import Any

from hf_rat.data.whole_files import write_json
from hf_rat.experiments.experiment import Cell, Experiment, Setting
from hf_rat.experiments.held_back import drop_weights, for_report, fresh_seeds, on_held_back
from hf_rat.experiments.method import Method
from hf_rat.experiments.pool import Pool
from hf_rat.experiments.run import Run
from hf_rat.experiments.scores import mean_scores, score_of, sign_of
from hf_rat.experiments.settings import Space
from hf_rat.experiments.spaces import Range, grid

_AT_RANDOM = 5  # trials before the sampler begins to learn from them
Values = tuple[str, ...]


def search(experiment: Experiment, pool: Pool, trials: int) -> tuple[Experiment, dict[Run, dict[str, Any]]]:
    """Make the trials that are missing, and put what they choose in place of the ranges.

    Args:
        experiment: its methods, flags and cells may have ranges.
        pool: makes the runs.
        trials: of every method in every cell.

    Returns:
        The experiment with values, without methods that failed with all trials of a cell in that cell; and the
        record of every trial.

    Raises:
        ValueError: a folder holds trials of another search, or no trial has the score.
    """
    studies = [_Study(experiment, method, cell, trials) for cell in experiment.cells for method in experiment.methods]
    if not any(study.ranges for study in studies):
        raise ValueError(
            f"--trials {trials}: nothing has a range to choose from, as in 'rat(epsilon={{0.01..1 log}})'"
        )
    for study in studies:
        study.require_own_folder()  # before any run
    records: dict[Run, dict[str, Any]] = {}
    waiting: dict[Future[dict[str, Any]], tuple[_Study, int]] = {}

    def advance(study: _Study) -> None:
        for number in study.ready():
            run = study.run(number)
            record = run.finished()
            if record is None:
                waiting[pool.submit(run)] = (study, number)
            else:
                records[run] = record
                study.tell(number, record)

    for study in studies:
        advance(study)
    while waiting:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            study, number = waiting.pop(future)
            records[study.run(number)] = record = future.result()
            study.tell(number, record)
            advance(study)
    chosen = {(study.cell, study.method): setting for study in studies if (setting := study.choose()) is not None}
    return replace(experiment, chosen=chosen), records


class _Study:
    """The search of one method in one cell.

    Args:
        experiment: whose.
        method, cell: which.
        trials: to be made.

    Raises:
        ValueError: a range cannot be read, or search.json is of other ranges.
    """

    def __init__(self, experiment: Experiment, method: Method, cell: Cell, trials: int) -> None:
        self.method, self.cell = method, cell
        self._experiment, self._trials = experiment, trials
        self._space = Space.of(experiment.setting(method, cell), f"--methods {method.entry!r}")
        self._folder = cell.folder(experiment.output) / method.slug
        self._path = self._folder / "search.json"
        self._grid = grid(self._space.ranges)
        if self._grid is not None:
            random.Random(experiment.seeds[0]).shuffle(self._grid)
        else:
            _optuna()  # if it is missing, that is said before any run
        self._log: list[dict[str, Any]] = self._former()
        self._records: dict[int, dict[str, Any]] = {}
        self._begun, self._sign = 0, 1

    @property
    def ranges(self) -> dict[str, str]:
        """Name -> range, as one types it."""
        return {one.name: one.shown for one in self._space.ranges}

    def require_own_folder(self) -> None:
        """Refuse a folder of trials that another command made.

        Raises:
            ValueError: which one.
        """
        for number in range(len(self._log)):
            self.run(number).finished()

    def ready(self) -> Iterator[int]:
        """The trials that may begin now."""
        while self._begun < self._trials:
            if self._begun == len(self._log):
                if self._grid is None and len(self._records) < self._begun:
                    return  # the next one depends on those that run
                values = self._next()
                seeds = fresh_seeds(self._experiment)
                seed = next(islice(seeds, sum(entry["values"] == list(values) for entry in self._log), None))
                self._log.append({"values": list(values), "seed": seed, "score": None})
                self._save(None)
            self._begun += 1
            yield self._begun - 1

    def tell(self, number: int, record: dict[str, Any]) -> None:
        """What came out of a trial."""
        self._records[number] = record
        scored = score_of(record, self._experiment.score)
        entry, value = self._log[number], None
        if scored is not None:
            self._sign, value = sign_of(scored[0]), scored[1]
        if record["finished"]:
            drop_weights(self.run(number).folder)
        if entry["score"] != value:
            entry["score"] = value
            self._save(None)

    def choose(self) -> Setting | None:
        """The setting with the best mean, the first of equal ones; None if every trial failed."""
        scores: dict[Values, list[float]] = {}
        for entry in self._log[: self._trials]:
            if entry["score"] is not None:
                scores.setdefault(tuple(entry["values"]), []).append(entry["score"])
        best = max(scores, key=lambda values: self._sign * mean(scores[values])) if scores else None
        self._save(best)
        return None if best is None else for_report(self._space.setting(best))

    def _next(self) -> Values:
        tried = [tuple(entry["values"]) for entry in self._log]
        if self._grid is not None:
            return min(self._grid, key=tried.count)
        scores = [None if entry["score"] is None else self._sign * entry["score"] for entry in self._log]
        told = list(zip(tried, scores, strict=True))
        seed = random.Random(f"{self._experiment.seeds[0]} {len(told)}").getrandbits(31)
        return _suggest(self._space.ranges, told, seed)

    def run(self, number: int) -> Run:
        """A trial as a run."""
        entry = self._log[number]
        chosen = {(self.cell, self.method): self._space.setting(entry["values"])}
        run = replace(self._experiment, chosen=chosen).run(self.method, self.cell, entry["seed"])
        return on_held_back(run, self._folder / "trials" / f"trial-{number + 1:02d}")

    def _former(self) -> list[dict[str, Any]]:
        """The log of an earlier search in the same folder."""
        if not self._path.exists():
            return []
        try:
            told = json.loads(self._path.read_text(encoding="utf-8"))
            ranges, log = told["ranges"], told["log"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path} cannot be read ({error}); give another --output_dir") from None
        if ranges != self.ranges:
            raise ValueError(f"{self._path} is of other ranges ({ranges}); give another --output_dir")
        return log

    def _save(self, best: Values | None) -> None:
        log = self._log[: self._trials]
        own = [n for n, entry in enumerate(log) if best == tuple(entry["values"]) and entry["score"] is not None]
        told = {
            "trials": len(log),
            "settings": len({tuple(entry["values"]) for entry in log}),
            "ranges": self.ranges,
            "chosen": None if best is None else dict(zip(self.ranges, best, strict=True)),
            "held_back": mean_scores([self._records[number] for number in own]) if own else None,
            "log": self._log,
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path, told)


def _suggest(space: Sequence[Range], told: Sequence[tuple[Values, float | None]], seed: int) -> Values:
    """Values for the next trial.

    Args:
        space: what there is to choose.
        told: values and score of each trial before; None where it failed.
        seed: of what is drawn. Nothing else is: a search that goes on chooses as one that was never interrupted.
    """
    optuna = _optuna()
    distributions = {str(number): _distribution(optuna, one) for number, one in enumerate(space)}
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_AT_RANDOM)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, score in told:
        state = optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE
        params = {
            str(number): value if one.choices else int(value) if one.whole else float(value)
            for number, (one, value) in enumerate(zip(space, values, strict=True))
        }
        study.add_trial(
            optuna.trial.create_trial(state=state, value=score, params=params, distributions=distributions)
        )
    drawn: Mapping[str, Any] = study.ask(distributions).params
    return tuple(
        drawn[str(number)] if one.choices else one.text(drawn[str(number)]) for number, one in enumerate(space)
    )


def _distribution(optuna: ModuleType, one: Range) -> Any:
    if one.choices:
        return optuna.distributions.CategoricalDistribution(one.choices)
    if one.whole:
        return optuna.distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
    return optuna.distributions.FloatDistribution(one.low, one.high, log=one.log)


def _optuna() -> ModuleType:
    """Optuna, silent.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError("--trials with ranges of numbers needs optuna: pip install 'hf-rat[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

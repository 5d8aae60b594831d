"""What a comparison is asked for, and the runs that this takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_rat.experiments.method import Method
from hf_rat.experiments.run import Run
from hf_rat.experiments.words import slug, value_of


@dataclass(frozen=True)
class Cell:
    """One data set with one model.

    Args:
        dataset: as the user named it; None where every run has the same.
        model: likewise.
        flags: that name both to the command, and those that they carry.
        command: the `hf-rat` command of its runs; None is that of the experiment.
    """

    dataset: str | None = None
    model: str | None = None
    flags: tuple[str, ...] = ()
    command: str | None = None

    @property
    def shown(self) -> str:
        return ", ".join(part for part in (self.dataset, self.model) if part)

    def folder(self, output: Path) -> Path:
        return output.joinpath(*(slug(part) for part in (self.dataset, self.model) if part is not None))


@dataclass(frozen=True)
class Setting:
    """The words of a method's runs in a cell.

    Args:
        words: the `hf-rat` command with the flags that all share, then those of the cell and of the method.
        expression: for --reg.
    """

    words: tuple[str, ...]
    expression: str


@dataclass(frozen=True)
class Experiment:
    """Methods x cells x seeds.

    Args:
        methods: rows of the table.
        seeds: that every method runs with in every cell.
        output: folder of the runs and the table.
        base: the `hf-rat` command that every run makes, and its flags.
        cells: data sets with models.
        baseline: entry of the method that others are compared with; None is plain, else the first.
        score: name of the score that counts, without eval_ or test_; None is the first of a run.
        jobs: runs at a time.
        trials: of each method in each cell, where a flag or an argument is a range.
        race: how many methods beside the baseline a race leaves; None is no race.
        controls: whether plain for the time of the dearest method, and plain with its epochs chosen, are added.
        chosen: the words of runs, with values in place of ranges; a method that has none in a cell has no runs there.
            None is before anything was chosen: the words are those that were typed.
    """

    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    output: Path
    base: tuple[str, ...] = ("glue",)
    cells: tuple[Cell, ...] = (Cell(),)
    baseline: str | None = None
    score: str | None = None
    jobs: int = 1
    trials: int | None = None
    race: int | None = None
    controls: bool = False
    chosen: Mapping[tuple[Cell, Method], Setting] | None = None

    @property
    def commands(self) -> list[str]:
        """The `hf-rat` commands that its runs make."""
        return list(dict.fromkeys(cell.command or self.base[0] for cell in self.cells))

    @property
    def reference(self) -> Method:
        """The method that others are compared with."""
        wanted = self.baseline or "plain"
        return next((method for method in self.methods if method.entry == wanted), self.methods[0])

    @property
    def plain(self) -> Method | None:
        """The plain training that controls vary: the baseline if it is plain, else the first method that is."""
        methods = (self.reference, *self.methods)
        return next((method for method in methods if method.expression in ("plain", "plain()")), None)

    def setting(self, method: Method, cell: Cell) -> Setting:
        """The words of a method's runs in a cell."""
        if self.chosen is None:
            command = cell.command or self.base[0]
            return Setting((command, *self.base[1:], *cell.flags, *method.flags), method.expression)
        return self.chosen[cell, method]

    def run(self, method: Method, cell: Cell, seed: int) -> Run:
        """One run."""
        setting = self.setting(method, cell)
        folder = cell.folder(self.output) / method.slug / f"seed-{seed}"
        words = [*setting.words]
        # What a run of many has no use for: trainings beside it, and the time of a plain step.
        words += [] if value_of(words, "alone") else ["--alone"]
        words += [] if value_of(words, "no_price") else ["--no_price"]
        if value_of(words, "report_to") not in (None, "none") and value_of(words, "run_name") is None:
            parts = (cell.dataset, cell.model, method.shown, f"seed-{seed}")
            words += ["--run_name", " ".join(part for part in parts if part)]
        words += ["--reg", setting.expression, "--seed", str(seed), "--output_dir", str(folder)]
        return Run(method, seed, folder, tuple(words), cell.dataset, cell.model)

    def plan(self) -> list[Run]:
        """Every run, seed by seed, so that an early stop leaves whole rounds."""
        return [
            self.run(method, cell, seed)
            for seed in self.seeds
            for cell in self.cells
            for method in self.methods
            if self.chosen is None or (cell, method) in self.chosen
        ]

"""A comparison of quick commands, to be killed: python killed_comparison.py OUTPUT [JOBS [SECONDS [METHOD ...]]]."""

import sys
from pathlib import Path

from hf_rat.experiments.compare import compare
from hf_rat.experiments.experiment import Experiment
from hf_rat.experiments.method import Method
from hf_rat.experiments.processes import Processes
from hf_rat.finetuning.blame import reported

METHODS, SEEDS = ("plain", "one", "two", "three"), (1, 2, 3, 4, 5)


def main(argv):
    output, jobs, seconds = Path(argv[0]), int(argv[1]), argv[2]
    methods = tuple(map(Method, argv[3:] or METHODS))
    experiment = Experiment(methods, SEEDS, output, ("quick", "--seconds", seconds), jobs=jobs)
    compare(experiment, "hf-rat compare ...", Processes("quick_command", (), jobs, devices=()))


if __name__ == "__main__":
    sys.exit(reported(main))

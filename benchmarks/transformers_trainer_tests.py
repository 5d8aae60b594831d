"""Transformers' own tests of its Trainer, once with `Trainer` and once with `RegularizedTrainer` in its place.

    python benchmarks/transformers_trainer_tests.py DIR --out results/transformers_trainer

DIR is a checkout of transformers that has tests/trainer (they are in no wheel and in no source distribution), of the
version next to the installed one that can be had. Nothing is downloaded: tests that need the Hub fail both times. The
regularized trainer is given no regularizer, so that what it does is plain training.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILES = (
    "test_trainer.py",
    "test_trainer_callback.py",
    "test_trainer_jit_checkpoint.py",
    "test_trainer_seq2seq.py",
    "test_trainer_utils.py",
)


class Outcomes:
    """A pytest plugin: writes what became of each test, as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._found[report.nodeid.split("/")[-1]] = {"outcome": report.outcome, "because": _because(report)}
            self._path.write_text(json.dumps(self._found, indent=1), encoding="utf-8")


def _because(report: Any) -> str:
    """The first line of what pytest says of a test that failed or was skipped, without the folders of this machine."""
    if report.passed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = report.longrepr[2] if report.skipped else crash.message if crash else str(report.longrepr)
    return re.sub(r"(?:/[\w.+@-]+)+/", "", next(iter(text.strip().splitlines()), ""))[:200]


def stand_in_for_what_is_gone(file: Path) -> None:
    """Give the installed transformers the names that the tests import and it lacks: who uses one is skipped."""
    import pytest

    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers"):
            continue
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            if not hasattr(module, alias.name):
                because = f"{alias.name} is not in transformers {version('transformers')}"
                setattr(module, alias.name, lambda *args, because=because, **kwargs: pytest.skip(because))


def run_here(trainer: str, tests: Path, path: Path, select: str) -> int:
    """Run the tests in this process; `RegularizedTrainer` takes the place of `Trainer` before they are imported."""
    import pytest
    import transformers
    import transformers.testing_utils as helpers

    # Whole classes ask for it, and only the tests with tokenizers of the Hub use it.
    helpers.require_sentencepiece = lambda test: test
    if trainer == "RegularizedTrainer":
        from hf_rat import RegularizedTrainer

        # The classes that derive from it (Seq2SeqTrainer) are imported later, and derive from ours.
        for module in (transformers.trainer, transformers):
            setattr(module, "Trainer", RegularizedTrainer)  # noqa: B010 - a name is replaced on purpose

    for name in FILES:
        stand_in_for_what_is_gone(tests / "trainer" / name)
    files = [str(tests / "trainer" / name) for name in FILES]
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", str(tests)]
    return int(pytest.main([*options, *(["-k", select] if select else []), *files], plugins=[Outcomes(path)]))


def compare(plain: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """How many ran, and which tests pass with the one and not with the other."""
    passed = [{name for name, found in each.items() if found["outcome"] == "passed"} for each in (plain, ours)]
    return {
        "transformers": version("transformers"),
        "Trainer": Counter(found["outcome"] for found in plain.values()),
        "RegularizedTrainer": Counter(found["outcome"] for found in ours.values()),
        "only with Trainer": {name: ours.get(name, {}).get("because", "") for name in sorted(passed[0] - passed[1])},
        "only with RegularizedTrainer": sorted(passed[1] - passed[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="a checkout of transformers that has tests/trainer")
    parser.add_argument("--out", type=Path, default=Path("results/transformers_trainer"), help="where the lists go")
    parser.add_argument("-k", dest="select", default="", help="run only the tests that pytest's -k selects")
    parser.add_argument("--only", choices=["Trainer", "RegularizedTrainer"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = args.out.absolute()
    if args.only:
        sys.exit(run_here(args.only, args.checkout.absolute() / "tests", out / f"{args.only}.json", args.select))
    if not (args.checkout / "tests" / "trainer" / FILES[0]).is_file():
        sys.exit(f"{args.checkout} has no tests/trainer/{FILES[0]}: it must be a checkout of transformers")
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for trainer in ("Trainer", "RegularizedTrainer"):
        command = [sys.executable, __file__, str(args.checkout), "--out", str(out), "-k", args.select]
        subprocess.run([*command, "--only", trainer], env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
        found.append(json.loads((out / f"{trainer}.json").read_text(encoding="utf-8")))
    summary = compare(*found)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()

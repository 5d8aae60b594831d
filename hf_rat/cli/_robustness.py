"""`hf-rat analyze robustness`."""

from __future__ import annotations

import argparse
from typing import Any

SUMMARY = "accuracy and loss under noisy characters and under attacks"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those of its own."""
    parser.add_argument("--rates", nargs="+", type=float, default=[0.05, 0.1, 0.2, 0.3], metavar="X", help="of noise")


def run(subjects: list[Any], asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """Measure all subjects; what goes into the JSON file, the pictures, and what is printed."""
    raise NotImplementedError

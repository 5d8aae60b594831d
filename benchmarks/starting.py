"""What part of the time of short runs goes into starting them, in a folder that `hf-rat compare` has filled.

    python benchmarks/starting.py out/example --output results/cost/starting/example.json

Starting is all of a run that is neither training nor evaluation: the process, reading and encoding rows, building and
saving the model, its card and picture. Imports are shared by all runs, and are not in these figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_AT_WORK = ("train_runtime", "eval_runtime", "test_runtime")


def measure(folder: Path) -> dict[str, Any]:
    """Seconds of each finished run, in all and at work, and the share of the rest in all runs together."""
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for path in sorted(folder.rglob("seed-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["finished"]:
            at_work = sum(value for name, value in record["results"].items() if name.startswith(_AT_WORK))
            rows.append({"command": record["command"], "seconds": record["seconds"], "at_work": round(at_work, 3)})
            versions = record["versions"]
    if not rows:
        raise SystemExit(f"{folder} holds no finished run of hf-rat compare")
    seconds = sum(row["seconds"] for row in rows)
    starting = seconds - sum(row["at_work"] for row in rows)
    return {
        "runs": len(rows),
        "seconds": round(seconds, 3),
        "starting": round(starting, 3),
        "share": round(starting / seconds, 4),
        "versions": versions,
        "each": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of hf-rat compare")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    measured = measure(arguments.folder)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(f"{measured['runs']} runs, {measured['seconds']:.0f} s, {100 * measured['share']:.1f} % of it starting")


if __name__ == "__main__":
    main()

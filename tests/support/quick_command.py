"""Stands in for `hf-rat`: a command that takes a moment and writes what a run writes. Its --reg says how it behaves.

Every call leaves a line "<method> <seed> begun" in the file that QUICK_CALLS names, and "... ended" at its end; a
probe, which has --max_steps, takes no time and leaves "... probed".
"""

import atexit
import itertools
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

leaked = 0


def main(argv):
    words = dict(itertools.pairwise(argv))
    method, seed, folder = words["--reg"], words["--seed"], Path(words["--output_dir"])
    probe = "--max_steps" in words
    seconds = 0 if probe else float(words.get("--seconds", 0))
    global leaked
    leaked += 1
    atexit.register(print, "goodbye")  # as trackers do, which send the rest then
    _tell(method, seed, "probed" if probe else "begun")
    folder.mkdir(parents=True)
    print(f"{method} says hello", flush=True)
    os.write(2, b"and a library writes to the descriptor\n")
    if method == "crash":
        os.kill(os.getpid(), 9)
    if method == "raise":
        raise RuntimeError("something broke")
    if method == "refuse":
        print("error: --reg refuse is not acceptable", file=sys.stderr)
        return 2
    if method == "full":
        raise OSError(28, "No space left on device")
    time.sleep(seconds)
    results = {
        "eval_accuracy": int(seed) / 10,
        "leaked": leaked,
        "argv": sys.argv,
        "start_method": multiprocessing.get_start_method(),
        **{name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")},
    }
    (folder / "all_results.json").write_text(json.dumps(results), encoding="utf-8")
    if not probe:
        _tell(method, seed, "ended")
    return 0


def _tell(*words):
    if "QUICK_CALLS" in os.environ:
        with open(os.environ["QUICK_CALLS"], "a", encoding="utf-8") as file:
            file.write(" ".join(words) + "\n")

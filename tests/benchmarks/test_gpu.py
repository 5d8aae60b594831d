"""benchmarks/gpu.py at tiny sizes on the CPU: results are kept as they come, also those before a part that fails."""

import json
import subprocess
import sys
from pathlib import Path

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def run(output, *flags):
    command = [
        sys.executable,
        str(GPU),
        "--output",
        str(output),
        "--tiny",
        "--device",
        "cpu",
        "--patience",
        "3",
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, json.loads(output.read_text(encoding="utf-8"))


def test_a_part_that_fails_keeps_what_came_before(tmp_path):
    """The comparison has no such data; the recurrent layers before it have been measured."""
    done, kept = run(tmp_path / "kept.json", "--parts", "recurrent", "comparison", "--data_dir", str(tmp_path))
    assert done.returncode == 1
    assert kept["parts"]["recurrent"]["ended"] == "finished"
    assert kept["parts"]["comparison"]["ended"].startswith("exit status 1")
    layers = {(row["cell"], row["name"]) for row in kept["rows"] if row["part"] == "recurrent"}
    assert {("LSTM", "torch.nn.LSTM"), ("GRU", "torch.nn.GRU"), ("LSTM", "zoneout")} <= layers
    assert all(row["ratio"] > 0 for row in kept["rows"] if row["part"] == "recurrent")
    assert kept["versions"]["torch"].startswith("2.")

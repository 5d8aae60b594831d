"""The notebook runs from its first cell to its last, as it stands."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "from_data_to_report.ipynb"
COMMAND = f"""#!{sys.executable}
import sys
from hf_rat.cli.main import main
if __name__ == "__main__":
    sys.exit(main())
"""


def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def script():
    """Its code as a program: a line that begins with ! is a command of the shell."""
    lines = ["import subprocess"]
    for cell in cells():
        if cell["cell_type"] == "code":
            lines += [
                f"subprocess.run({line[1:]!r}, shell=True, check=True)" if line.startswith("!") else line
                for line in "".join(cell["source"]).splitlines()
            ]
    return "\n".join(lines)


def test_it_has_ten_cells_and_no_outputs():
    assert len(cells()) == 10
    assert not any(cell.get("outputs") for cell in cells())


def test_it_runs_and_leaves_a_report(tmp_path):
    binaries = tmp_path / "bin"
    binaries.mkdir()
    command = binaries / "hf-rat"  # that of this tree
    command.write_text(COMMAND)
    command.chmod(0o755)
    paths = {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **paths, **offline}
    done = subprocess.run(
        [sys.executable, "-c", script()], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in ("Verdict", "Every seed", "Learning curves", "Reliability", "Settings"):
        assert part in page

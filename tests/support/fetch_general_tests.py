"""Fetch the general model tests of Transformers: `python tests/support/fetch_general_tests.py DIR`.

They are in no wheel, only in the source distribution of the registry. It is that of the installed version, unpacked to
DIR/transformers-VERSION; nothing of it is installed or committed. Then `HF_RAT_GENERAL_TESTS=DIR pytest` runs them.
"""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path


def fetch(folder: Path) -> Path:
    """Where the tests are; downloaded if they are not there yet."""
    name = f"transformers-{version('transformers')}"
    tests = folder / name / "tests"
    if not tests.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        what = f"transformers=={version('transformers')}"
        command = [
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            "transformers",
            "--dest",
            str(folder),
        ]
        subprocess.run([sys.executable, *command, what], check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            members = [member for member in archive.getmembers() if member.name.startswith(f"{name}/tests/")]
            archive.extractall(folder, members, filter="data")
    return tests


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIR")
    print(fetch(Path(sys.argv[1])))

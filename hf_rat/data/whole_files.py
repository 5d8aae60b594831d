"""Files that are, at any moment, whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is, at any moment, whole: an interruption, or a full disk, leaves the former one."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # what is renamed is on the disk, should the machine stop now
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise

"""What a run was made with: versions of packages, and the state of the source."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("hf-rat", "torch", "transformers", "accelerate", "datasets")


@functools.cache
def versions() -> dict[str, str]:
    """Name -> version, of Python and the packages that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@functools.cache
def git_state() -> dict[str, Any] | None:
    """The commit of the checkout that this package lies in, and whether files differ from it; None outside of one."""
    source = Path(__file__).resolve()
    try:
        # An installed copy may lie in the checkout of something else, which does not track it.
        _git(source.parent, "ls-files", "--error-unmatch", source.name)
        return {
            "commit": _git(source.parent, "rev-parse", "HEAD").strip(),
            "dirty": bool(_git(source.parent, "status", "--porcelain", "--untracked-files=no").strip()),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout

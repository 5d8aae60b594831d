"""Memory that a step has freed, kept for the next one.

glibc gives what was freed at the top of its heap, and every block of more than 32 MB, back to the system, which must
then find and clear pages anew for the next tensor of that size: a quarter of some steps (benchmarks/kept_memory.py).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# <malloc.h>, and the values that glibc begins with
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_BY_DEFAULT = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024}
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}


def can_keep_memory() -> bool:
    """Whether the allocator is glibc's, the one that can be told to, and the user has not told it anything else."""
    told = {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    another = "malloc" in os.environ.get("LD_PRELOAD", "")  # jemalloc, tcmalloc, mimalloc
    return platform.libc_ver()[0] == "glibc" and not told and not another


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Inside, this process gives no freed memory back to the system; nothing where that cannot be.

    Numbers do not change. What is free is given back at the end.
    """
    if not can_keep_memory():
        yield
        return
    libc = ctypes.CDLL(None)
    _tell(libc, _KEEP)
    try:
        yield
    finally:
        _tell(libc, _BY_DEFAULT)
        libc.malloc_trim(0)


def _tell(libc: ctypes.CDLL, settings: dict[int, int]) -> None:
    for parameter, value in settings.items():
        libc.mallopt(parameter, value)

"""The temporal order problem of Hochreiter and Schmidhuber (1997), as Semeniuta et al. (2016) have it.

A sequence is made of the symbols C and D at random, save for two places: one in its first third and one in its second
third, at random, each A or B. The class is which stood first and which second: AA, AB, BA or BB. Whoever reads must
remember two symbols for a third of the sequence or more, whatever comes between and after.
"""

from __future__ import annotations

import numpy as np

SYMBOLS = ("A", "B", "C", "D")
CLASSES = ("AA", "AB", "BA", "BB")


def temporal_order(count: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences and their classes.

    Args:
        count: how many.
        length: symbols of each, at least 3. The thirds are [0, length // 3) and [length // 3, 2 * length // 3).
        seed: they are drawn by.

    Returns:
        float32 (count, length, 4), one-hot over SYMBOLS; int64 (count,), positions in CLASSES.

    Raises:
        ValueError: the length is below 3.
    """
    if length < 3:
        raise ValueError(f"length={length}: at least 3 are needed, for two thirds with a symbol each")
    rng = np.random.default_rng(seed)
    symbols = rng.integers(2, 4, (count, length))
    markers = rng.integers(0, 2, (count, 2))
    rows, third = np.arange(count), length // 3
    symbols[rows, rng.integers(0, third, count)] = markers[:, 0]
    symbols[rows, rng.integers(third, 2 * length // 3, count)] = markers[:, 1]
    return np.eye(4, dtype=np.float32)[symbols], 2 * markers[:, 0] + markers[:, 1]

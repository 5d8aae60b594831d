"""Images as sequences: one pixel at each step, row by row or in a random order that is the same for all images."""

from __future__ import annotations

import numpy as np

WHITE = 255.0


def pool(pixels: np.ndarray, side: int) -> np.ndarray:
    """Smaller images: each new pixel is the mean over a square of old ones.

    Args:
        pixels: (images, height, width), both multiples of `side`.
        side: pixels of the new height and width.

    Returns:
        float32 (images, side, side).

    Raises:
        ValueError: the images cannot be divided so.
    """
    count, height, width = pixels.shape
    if height % side or width % side:
        raise ValueError(f"images of {height} x {width} pixels cannot be pooled to {side} x {side}")
    squares = pixels.reshape(count, side, height // side, side, width // side)
    return squares.mean(axis=(2, 4), dtype=np.float32)


def pixel_sequences(pixels: np.ndarray, side: int, permutation_seed: int | None = None) -> np.ndarray:
    """What the network reads, one pixel at a time.

    Args:
        pixels: uint8 (images, height, width).
        side: pixels of the height and width to which images are pooled.
        permutation_seed: of the order of the pixels, as `numpy.random.RandomState(seed).permutation` makes it (the
            generator of the published code, whose stream never changes). None reads row by row.

    Returns:
        float32 (images, side * side, 1), 0 to 1.
    """
    sequences = pool(pixels, side).reshape(len(pixels), side * side, 1) / np.float32(WHITE)
    if permutation_seed is None:
        return sequences
    order = np.random.RandomState(permutation_seed).permutation(side * side)
    return np.ascontiguousarray(sequences[:, order])

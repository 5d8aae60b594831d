"""Made-up digits in the format of MNIST: the seven strokes of a calculator's display, no two alike.

They are slanted, wide or narrow, thick or thin, somewhere near the middle, blurred and noisy. Nothing is downloaded.
"""

from __future__ import annotations

import numpy as np

from hf_rat.data.idx_files import CLASSES, Images

SIDE = 28
# The strokes of a display, as (x, y) from 0 to 1, and which of them make each digit.
_STROKES = (
    ((0, 0), (1, 0)),
    ((1, 0), (1, 0.5)),
    ((1, 0.5), (1, 1)),
    ((0, 1), (1, 1)),
    ((0, 0.5), (0, 1)),
    ((0, 0), (0, 0.5)),
    ((0, 0.5), (1, 0.5)),
)
_DIGITS: tuple[tuple[int, ...], ...] = (
    (0, 1, 2, 3, 4, 5),
    (1, 2),
    (0, 1, 3, 4, 6),
    (0, 1, 2, 3, 6),
    (1, 2, 5, 6),
    (0, 2, 3, 5, 6),
    (0, 2, 3, 4, 5, 6),
    (0, 1, 2),
    (0, 1, 2, 3, 4, 5, 6),
    (0, 1, 2, 3, 5, 6),
)


def generated_digits(count: int, seed: int) -> Images:
    """So many digits of 28 x 28 pixels, drawn by the seed; every class equally often, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % CLASSES)
    return Images(np.stack([_draw(int(label), rng) for label in labels]), labels.astype(np.int64))


def _draw(digit: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (28, 28)."""
    width, height, slant = rng.uniform(8, 13), rng.uniform(15, 19), rng.uniform(-0.25, 0.25)
    left, top = (SIDE - width) / 2 + rng.uniform(-2, 2), (SIDE - height) / 2 + rng.uniform(-2, 2)
    thickness, brightness = rng.uniform(0.8, 1.8), rng.uniform(180, 255)
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    distance = np.full((SIDE, SIDE), np.inf)
    for stroke in _DIGITS[digit]:
        (x0, y0), (x1, y1) = (
            (left + width * u + slant * height * (0.5 - v), top + height * v) for u, v in _STROKES[stroke]
        )
        # How far along the stroke its nearest point is, 0 to 1.
        along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
        along = along.clip(0, 1)
        distance = np.minimum(distance, np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)))
    ink = brightness * (1.5 + thickness - distance).clip(0, 1) * (distance < thickness + 1.5)
    noise = rng.normal(0, 12, (SIDE, SIDE)) * (rng.random((SIDE, SIDE)) < 0.1)
    return (ink + noise).clip(0, 255).round().astype(np.uint8)

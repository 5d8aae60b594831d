"""MNIST as its own files hold it: idx, compressed by gzip, read by numpy."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

# split -> how its two files begin.
_NAMES = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTES = 8  # the third byte of an idx file: the type of its entries
CLASSES = 10


class Images(NamedTuple):
    """Grey images with what they show.

    Args:
        pixels: uint8 (images, height, width), 0 is the background.
        labels: int64 (images,), 0 to 9.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def part(self, start: int, stop: int) -> Images:
        """The images from `start` to before `stop`."""
        return Images(self.pixels[start:stop], self.labels[start:stop])


def read_mnist(folder: Path, split: str) -> Images:
    """One split of MNIST, or of anything in its format (Fashion-MNIST, KMNIST).

    Args:
        folder: has train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, and the same with t10k.
        split: "train" or "test".

    Raises:
        ValueError: a file is missing, cut short or something else, or the two do not fit together; in one line.
    """
    image_file = folder / f"{_NAMES[split]}-images-idx3-ubyte.gz"
    label_file = folder / f"{_NAMES[split]}-labels-idx1-ubyte.gz"
    pixels, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(pixels) != len(labels):
        raise ValueError(f"{label_file} has {len(labels)} labels, and {image_file.name} has {len(pixels)} images")
    if not len(pixels):
        raise ValueError(f"{image_file} holds no images")
    if int(labels.max()) >= CLASSES:
        row = int(np.argmax(labels >= CLASSES))
        raise ValueError(f"{label_file}: label {row} is {int(labels[row])}, expected 0 to {CLASSES - 1}")
    return Images(pixels, labels.astype(np.int64))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of unsigned bytes in an idx file that gzip compressed.

    Args:
        path: of the file.
        dimensions: how many the array must have.

    Raises:
        ValueError: there is no such file, or it is cut short or something else; in one line.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except EOFError:
        raise ValueError(f"{path} is cut short: the compressed stream has no end") from None
    except (OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as gzip ({' '.join(str(error).split())})") from None
    header = 4 + 4 * dimensions
    magic = bytes([0, 0, _UNSIGNED_BYTES, dimensions])
    if len(content) >= 4 and content[:4] != magic:
        raise ValueError(f"{path} begins with {content[:4].hex()}, an idx file of this kind with {magic.hex()}")
    if len(content) < header:
        raise ValueError(f"{path} is cut short: {len(content)} bytes, an idx header of {header} is needed")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    wanted = header + int(np.prod(shape))
    if len(content) != wanted:
        wrong = "is cut short" if len(content) < wanted else "is too long"
        raise ValueError(f"{path} {wrong}: {len(content)} bytes, its header asks for {wanted} (shape {shape})")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)

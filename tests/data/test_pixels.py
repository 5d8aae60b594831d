"""Image files, made-up digits and the sequences that are made of both."""

import gzip
import struct

import numpy as np
import pytest

from hf_rat.data.generated_digits import generated_digits
from hf_rat.data.idx_files import read_idx, read_mnist
from hf_rat.data.pixel_sequences import pixel_sequences, pool


def idx(array):
    """An idx file's content, written by struct."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write(folder, name="train", images=None, labels=None):
    """Two files as MNIST has them."""
    folder.mkdir(exist_ok=True, parents=True)
    images = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 251 if images is None else images
    labels = np.array([7, 0, 9]) if labels is None else labels
    (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return images, labels


@pytest.mark.parametrize(("split", "name"), [("train", "train"), ("test", "t10k")])
def test_what_was_written_is_read(tmp_path, split, name):
    images, labels = write(tmp_path, name)
    found = read_mnist(tmp_path, split)
    assert found.pixels.dtype == np.uint8
    assert found.labels.dtype == np.int64
    np.testing.assert_array_equal(found.pixels, images)
    np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize("kept", [0, 3, 15, 16, 100, -1])
def test_a_file_that_is_cut_short_is_one_line(tmp_path, kept):
    """Cut before it was compressed; at 0 nothing is left of it, at 16 the header."""
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:kept]))
    with pytest.raises(ValueError, match="is cut short") as error:
        read_mnist(tmp_path, "train")
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_download_that_was_cut_short_is_one_line(tmp_path, share):
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="is cut short") as error:
        read_mnist(tmp_path, "train")
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


def damaged(content):
    return content[:40] + bytes([content[40] ^ 0xFF]) + content[41:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: b"<html>not found</html>", "cannot be read as gzip"),
        (damaged, "cannot be read as gzip|is cut short"),
        (lambda content: gzip.compress(idx(np.zeros((3, 784)))), "begins with 00000802"),
        (lambda content: gzip.compress(b"PNG" + bytes(100)), "begins with 504e4700"),
        (lambda content: gzip.compress(gzip.decompress(content) + b"x"), "is too long"),
        (lambda content: gzip.compress(idx(np.zeros((2, 28, 28)))), "3 labels, and .* has 2 images"),
    ],
)
def test_another_file_is_one_line(tmp_path, change, said):
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=said) as error:
        read_mnist(tmp_path, "train")
    assert "\n" not in str(error.value)


def test_a_missing_file_an_empty_one_and_a_label_that_is_no_digit_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: no such file"):
        read_mnist(tmp_path, "train")
    write(tmp_path, labels=np.array([1, 10, 2]))
    with pytest.raises(ValueError, match="label 1 is 10, expected 0 to 9"):
        read_mnist(tmp_path, "train")
    write(tmp_path, images=np.zeros((0, 28, 28)), labels=np.zeros(0))
    with pytest.raises(ValueError, match="holds no images"):
        read_mnist(tmp_path, "train")
    with pytest.raises(ValueError, match="begins with 00000801"):
        read_idx(tmp_path / "train-labels-idx1-ubyte.gz", 3)


def test_pooling_is_the_mean_over_squares():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    pooled = pool(pixels, 14)
    for image, row, column in [(0, 0, 0), (1, 3, 11), (2, 13, 13)]:
        square = [int(pixels[image, 2 * row + i, 2 * column + j]) for i in (0, 1) for j in (0, 1)]
        assert pooled[image, row, column] == sum(square) / 4
    np.testing.assert_array_equal(pool(pixels, 28), pixels)
    with pytest.raises(ValueError, match="28 x 28 pixels cannot be pooled to 5 x 5"):
        pool(pixels, 5)


def test_a_permutation_is_the_same_for_all_images_and_all_runs():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28)).astype(np.uint8)
    rows = pixel_sequences(pixels, 14)
    assert rows.shape == (4, 196, 1)
    assert rows.dtype == np.float32
    assert 0 <= rows.min() < rows.max() <= 1
    np.testing.assert_allclose(rows[..., 0], pool(pixels, 14).reshape(4, 196) / 255, rtol=1e-6)
    permuted = pixel_sequences(pixels, 14, permutation_seed=10)
    np.random.seed(10)
    order = np.random.permutation(196)
    np.testing.assert_array_equal(permuted, rows[:, order])
    assert not np.array_equal(permuted, pixel_sequences(pixels, 14, permutation_seed=11))


def test_made_up_digits_look_like_their_classes():
    """The mean image of each class tells most of other digits, and not all: it is no look-up."""
    train, test = generated_digits(400, seed=0), generated_digits(200, seed=1)
    assert train.pixels.shape == (400, 28, 28)
    assert train.pixels.dtype == np.uint8
    assert np.bincount(train.labels, minlength=10).tolist() == [40] * 10
    assert len({image.tobytes() for image in train.pixels}) == 400
    means = np.stack([train.pixels[train.labels == digit].mean(0) for digit in range(10)])
    distance = ((test.pixels[:, None] - means[None]) ** 2).sum((2, 3))
    assert 0.6 < (distance.argmin(1) == test.labels).mean() < 1
    np.testing.assert_array_equal(generated_digits(400, seed=0).pixels, train.pixels)

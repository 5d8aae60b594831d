"""Word vectors: every form of file gives the same rows, and no damaged file passes."""

import gzip
import logging
import pickle

import numpy as np
import pytest
import torch

from hf_rat.data.vectors import load_vectors

DIM = 4
WORDS = {"film": [0.5, -1.0, 2.0, 0.25], "n't": [1e-3, 3.0, -4.0, 5.5], "电影": [7.0, 8.0, 9.0, -0.125]}
VOCABULARY = {"film": 5, "n't": 2, "电影": 3, "absent": 4}
COUNTS = [100, 50, 6, 1, 2, 1]  # of <pad>, <unk>, n't, 电影, absent, film


def lines(end=""):
    rows = {"of": [9.0] * DIM, **WORDS, "Film": [8.0] * DIM}
    return [f"{word} {' '.join(map(str, numbers))}{end}" for word, numbers in rows.items()]


def write(folder, kind):
    """One of the forms of the same vectors."""
    text = "\n".join(lines()) + "\n"
    path = folder / "vectors.txt"
    match kind:
        case "glove":
            path.write_text(text, encoding="utf-8")
        case "glove, no last newline":
            path.write_text(text.rstrip("\n"), encoding="utf-8")
        case "glove, Windows":
            path.write_bytes(text.replace("\n", "\r\n").encode())
        case "word2vec":
            path.write_text("\n".join([f"{len(lines())} {DIM}", *lines(end=" ")]) + "\n", encoding="utf-8")
        case "fastText":
            path = folder / "wiki.vec"
            path.write_text(f"{len(lines())} {DIM}\n{text}", encoding="utf-8")
        case "gzip":
            path = folder / "vectors.vec.gz"
            path.write_bytes(gzip.compress(f"{len(lines())} {DIM}\n{text}".encode()))
        case "gzip by another name":
            path.write_bytes(gzip.compress(text.encode()))
        case ".npy and .vocab" | ".npy and .txt" | "half precision":
            path = folder / "vectors.npy"
            words = [line.split(" ")[0] for line in lines()]
            numbers = [[float(number) for number in line.split(" ")[1:]] for line in lines()]
            np.save(path, np.array(numbers, dtype=np.float16 if kind == "half precision" else np.float64))
            ending = ".txt" if kind == ".npy and .txt" else ".vocab"
            path.with_suffix(ending).write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


FORMS = [
    "glove",
    "glove, no last newline",
    "glove, Windows",
    "word2vec",
    "fastText",
    "gzip",
    "gzip by another name",
    ".npy and .vocab",
    ".npy and .txt",
]


@pytest.mark.parametrize("kind", FORMS)
def test_every_form_gives_the_same_rows_and_the_rest_of_the_table_stays(tmp_path, kind):
    found = load_vectors(write(tmp_path, kind), VOCABULARY, DIM, COUNTS)
    assert found.ids.tolist() == [2, 3, 5]
    assert found.types == 3 / 4
    assert found.tokens == (6 + 1 + 1) / (6 + 1 + 2 + 1)
    table = torch.nn.Embedding(6, DIM, padding_idx=0)
    before = table.weight.detach().clone()
    found.copy_into(table.weight)
    for word, row in VOCABULARY.items():
        expected = torch.tensor(WORDS[word]) if word in WORDS else before[row]
        assert torch.equal(table.weight[row].detach(), expected)
    assert torch.equal(table.weight[:2], before[:2])
    assert table.weight.requires_grad


def test_half_precision_arrays_become_float32(tmp_path):
    found = load_vectors(write(tmp_path, "half precision"), {"电影": 0}, DIM)
    assert found.vectors.dtype == torch.float32
    assert found.vectors.tolist() == [WORDS["电影"]]
    assert found.tokens is None


def test_the_coverage_is_reported(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="hf_rat.data.vectors"):
        load_vectors(write(tmp_path, "glove"), VOCABULARY, DIM, COUNTS)
    assert "3 words, 75.0% of the vocabulary, 80.0% of their occurrences" in caplog.text


def test_the_first_of_two_rows_counts_and_words_with_spaces_are_passed_over(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("a 1 2\n. . . 5 6\na 3 4\nat name@x y 7 8\n\u3000 0 0\nb\x85c 1 1\n", encoding="utf-8")
    found = load_vectors(path, {"a": 0, ".": 1, "at": 2}, 2)
    assert (found.ids.tolist(), found.vectors.tolist()) == ([0], [[1.0, 2.0]])


def test_only_the_needed_rows_are_kept(tmp_path):
    """A table of 20000 words, of which one is wanted, is read in less memory than a tenth of it."""
    import tracemalloc

    path = tmp_path / "vectors.txt"
    with path.open("w") as file:
        file.writelines(f"w{row} " + " ".join(["0.25"] * 20) + "\n" for row in range(20000))
    tracemalloc.start()
    load_vectors(path, {"w19999": 0}, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 10


def damaged(tmp_path, kind):
    good = lines()
    text = "\n".join(good) + "\n"
    path = tmp_path / "vectors.txt"
    header = f"{len(good)} {DIM}\n"
    array = write(tmp_path, ".npy and .vocab")
    match kind:
        case "missing":
            return tmp_path / "nothing.txt"
        case "empty":
            path.write_text("")
        case "only a header":
            path.write_text(header)
        case "glove width":
            path.write_text("of 1 2 3\na 1 2 3\n")
        case "header width":
            path.write_text("2 3\nof 1 2 3\nfilm 1 2 3\n")
        case "prose":
            path.write_text("the film was good\nand long\n")
        case "binary word2vec":
            path.write_bytes(f"2 {DIM}\n".encode() + b"film \xff\xfe\x00\x01" * 9)
        case "row cut short":
            path.write_text(text[: text.rindex(" ")], encoding="utf-8")
        case "row cut within":
            path.write_text(text.replace("-4.0 5.5", "-4.0"), encoding="utf-8")
        case "fewer rows":
            path.write_text(header + "\n".join(good[:-2]) + "\n", encoding="utf-8")
        case "more rows":
            path.write_text(header + text + good[0] + "\n", encoding="utf-8")
        case "a word among the numbers":
            path.write_text(text.replace("2.0", "two"), encoding="utf-8")
        case "not finite":
            path.write_text(text.replace("5.5", "nan"), encoding="utf-8")
        case "gzip cut short":
            noise = np.random.default_rng(0).normal(size=(3000, DIM)).tolist()
            packed = gzip.compress(
                "".join(f"w{n} {' '.join(map(str, row))}\n" for n, row in enumerate(noise)).encode()
            )
            path.write_bytes(packed[: len(packed) // 2])
        case "gzip damaged":
            packed = bytearray(gzip.compress(text.encode()))
            packed[-6] ^= 255  # the checksum
            path.write_bytes(packed)
        case "zip":
            path.write_bytes(b"PK\x03\x04 and so on")
        case "no word of ours":
            path.write_text("FILM 1 2 3 4\n")
        case "no words file":
            array.with_suffix(".vocab").unlink()
            return array
        case "array width":
            np.save(array, np.zeros((5, 3)))
            return array
        case "array of integers":
            np.save(array, np.zeros((5, DIM), dtype=int))
            return array
        case "array cut short":
            array.write_bytes(array.read_bytes()[:-8])
            return array
        case "array of other length":
            np.save(array, np.zeros((4, DIM)))
            return array
        case "pickle":
            array.write_bytes(pickle.dumps({"film": [1.0] * DIM}))
            return array
        case "pickled objects":
            np.save(array, np.array([{"film": 1.0}], dtype=object), allow_pickle=True)
            return array
        case "words in another encoding":
            array.with_suffix(".vocab").write_bytes("电影\n".encode("gbk") * 5)
            return array
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("empty", "it has no vectors"),
        ("only a header", "it has no vectors"),
        ("glove width", "its vectors have width 3, the model's have 4"),
        ("header width", "its vectors have width 3, the model's have 4"),
        ("prose", "line 1 is not a word and its numbers"),
        ("binary word2vec", "line 2 is not a word and its numbers"),
        ("row cut short", "line 5 has 3 numbers instead of 4; the file is cut short"),
        ("row cut within", "line 3 has 3 numbers instead of 4"),
        ("fewer rows", "it has 3 vectors, its first line promises 5; the file is cut short"),
        ("more rows", "it has 6 vectors, its first line promises 5"),
        ("a word among the numbers", "line 2 has something that is not a number"),
        ("not finite", 'the vector of "n\'t" has a number that is not finite'),
        ("gzip cut short", "the gzip file is cut short"),
        ("gzip damaged", "the gzip file is damaged"),
        ("zip", "is a zip archive; unpack it"),
        ("no word of ours", "none of the 4 words of the vocabulary is in it"),
        ("no words file", "put vectors.vocab or vectors.txt beside it"),
        ("array width", "its vectors have width 3, the model's have 4"),
        ("array of integers", "it holds int64 of shape (5, 4), it must hold floats"),
        ("array cut short", "not a whole .npy array"),
        ("array of other length", "it has 4 vectors, vectors.vocab has 5 words"),
        ("pickle", "not a whole .npy array"),
        ("pickled objects", "not a whole .npy array"),
        ("words in another encoding", "vectors.vocab is not UTF-8 text"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, kind, message):
    with pytest.raises(ValueError, match=r"^word_vectors '") as error:
        load_vectors(damaged(tmp_path, kind), VOCABULARY, DIM)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ["\ufeffgood 1 2\nbad 3 4\n", "\ufeff2 2\ngood 1 2\nbad 3 4\n", "good  1   2 \nbad\t3\t4\n"]
)
def test_marks_and_wide_spaces_are_passed_over(tmp_path, content):
    (tmp_path / "vectors.txt").write_text(content, encoding="utf-8")
    found = load_vectors(tmp_path / "vectors.txt", {"good": 0, "bad": 1}, dim=2)
    assert found.vectors.tolist() == [[1.0, 2.0], [3.0, 4.0]]

"""Data in, and every way it can be wrong."""

import logging
import time

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_rat.data import hub, loading
from hf_rat.data.encoding import Labels, tokenize
from hf_rat.data.generated import generated_tokenizer
from hf_rat.data.tasks import TEXTS, find

RTE = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1], "idx": [0, 1]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    logging.disable(logging.ERROR)  # datasets logs what we turn into one line
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "glue" / "rte").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        Dataset.from_dict(RTE).to_parquet(tmp_path / "glue" / "rte" / f"{split}.parquet")
    return tmp_path


def _message(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_only_the_asked_splits_are_read(folder):
    (folder / "glue" / "rte" / "test.parquet").write_bytes(b"not parquet")
    data = loading.load_task(find("rte"), ["train", "validation"], str(folder))
    assert list(data) == ["train", "validation"]
    assert data["train"].to_dict() == RTE


def test_a_missing_split_names_the_file(folder):
    with pytest.raises(ValueError, match="data_dir") as error:
        loading.load_task(find("qnli"), ["train"], str(folder))
    assert f"{folder}/glue/qnli/train.parquet" in _message(error)


def test_a_file_that_is_not_parquet(folder):
    (folder / "glue" / "rte" / "train.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"data_dir '.*train.parquet' does not parse as parquet") as error:
        loading.load_task(find("rte"), ["train"], str(folder))
    _message(error)


def test_a_column_that_is_not_there(folder):
    Dataset.from_dict(RTE).remove_columns("sentence2").to_parquet(folder / "glue" / "rte" / "train.parquet")
    with pytest.raises(ValueError, match=r"task_name 'rte', split train: there is no column 'sentence2'") as error:
        loading.load_task(find("rte"), ["train"], str(folder))
    assert "sentence1, label, idx" in _message(error)


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("csv", "sentence,label\nfine,1\nawful,0\n"),
        ("tsv", "sentence\tlabel\nfine\t1\nawful\t0\n"),
        ("jsonl", '{"sentence": "fine", "label": 1}\n{"sentence": "awful", "label": 0}\n'),
        ("json", '[{"sentence": "fine", "label": 1}, {"sentence": "awful", "label": 0}]'),
    ],
)
def test_files_of_each_kind_hold_the_same_rows(tmp_path, ending, content):
    path = tmp_path / f"train.{ending}"
    path.write_text(content)
    data = loading.load_files({"train": str(path)})
    assert data["train"].to_dict() == {"sentence": ["fine", "awful"], "label": [1, 0]}


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("csv", 'a,b\n"1,2\n3,4,5,6\n', "does not parse as csv"),
        ("csv", "", "does not parse as csv"),
        ("json", '{"a": [1, 2', "does not parse as json"),
        ("parquet", "no", "does not parse as parquet"),
        ("xlsx", "no", "the ending must be one of .csv, .tsv, .json, .jsonl, .parquet"),
    ],
)
def test_files_that_do_not_parse(tmp_path, ending, content, message):
    path = tmp_path / f"mine.{ending}"
    path.write_text(content)
    with pytest.raises(ValueError, match="validation_file") as error:
        loading.load_files({"validation": str(path)})
    assert message in _message(error)
    assert str(path) in _message(error)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_without_rows(tmp_path, ending):
    path = tmp_path / f"none.{ending}"
    rows = Dataset.from_dict({"text": [], "label": []})
    rows.to_csv(path) if ending == "csv" else rows.to_parquet(path)
    with pytest.raises(ValueError, match=r"test_file .*: the file is empty, it must have at least one row") as error:
        loading.load_files({"test": str(path)})
    _message(error)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"train_file '.*none.csv': no such file"):
        loading.load_files({"train": str(tmp_path / "none.csv")})


def test_an_empty_split():
    with pytest.raises(ValueError, match="split train: the split is empty"):
        loading.require_rows(Dataset.from_dict({"label": []}), "split train")


def test_without_a_network_the_answer_is_one_line_at_once(monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    hub.hub_answers.cache_clear()
    start = time.monotonic()
    with pytest.raises(ValueError, match="task_name 'rte'") as error:
        loading.load_task(find("rte"), ["train"])
    assert time.monotonic() - start < 6
    text = _message(error)
    assert "connect to the network" in text
    assert "data_dir DIR (or HF_RAT_DATA) with DIR/glue/rte/<split>.parquet" in text
    hub.hub_answers.cache_clear()


def test_in_offline_mode_too(monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set") as error:
        loading.load_task(find("rte"), ["train"])
    assert "data_dir" in _message(error)


def test_labels_of_a_task_are_its_numbers():
    rows = Labels.of_task(find("rte")).encode(Dataset.from_dict(RTE), "label", "x")
    assert rows["label"][:] == [0, 1]


@pytest.mark.parametrize("label", [2, -1, None])
def test_a_label_outside_the_label_set(label):
    rows = Dataset.from_dict({"label": [0, 1, label]})
    with pytest.raises(ValueError, match="--task_name 'rte': row 2 has the label") as error:
        Labels.of_task(find("rte")).encode(rows, "label", "--task_name 'rte'")
    assert f"{label!r}, which is outside the label set [0, 1]" in _message(error)


def test_labels_found_in_a_column():
    words = Labels.of_column(Dataset.from_dict({"y": ["b", "a", "b"]}), "y")
    assert words.names == ("a", "b")
    assert words.encode(Dataset.from_dict({"text": ["s", "t"], "y": ["b", "a"]}), "y", "x")["label"][:] == [1, 0]
    numbers = Labels.of_column(Dataset.from_dict({"y": [7, 3, 7]}), "y")
    assert (numbers.names, numbers.values) == (("3", "7"), (3, 7))
    named = Dataset.from_dict({"y": [1, 0]}, features=Features({"y": ClassLabel(names=["no", "yes"])}))
    assert Labels.of_column(named, "y").names == ("no", "yes")
    floats = Labels.of_column(Dataset.from_dict({"y": [0.5, 3.0]}), "y")
    assert floats.regression


def test_a_regression_label_that_is_no_number():
    rows = Dataset.from_dict({"y": [0.5, float("nan")]}, features=Features({"y": Value("float32")}))
    with pytest.raises(ValueError, match="row 1 has the label nan, a regression needs a finite number"):
        Labels.of_column(rows, "y").encode(rows, "y", "x")


def test_a_classifier_keeps_its_own_order_of_the_labels():
    labels = Labels.of_task(find("mnli")).in_order_of({"CONTRADICTION": 0, "NEUTRAL": 1, "ENTAILMENT": 2})
    assert labels.to_model == (2, 1, 0)
    assert labels.id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
    rows = labels.encode(Dataset.from_dict({"text": ["s", "t", "u"], "label": [0, 1, 2]}), "label", "x")
    assert rows["label"][:] == [2, 1, 0]
    assert labels.from_model(np.array([2, 1, 0, 0])).tolist() == [0, 1, 2, 2]


def test_other_label_names_are_not_taken_over():
    assert Labels.of_task(find("rte")).in_order_of({"LABEL_0": 0, "LABEL_1": 1}) is None
    assert Labels.of_task(find("rte")).in_order_of({"entailment": 0, "not_entailment": 0}) is None


def test_tokens_are_cut_and_padded_as_asked():
    tokenizer = generated_tokenizer()
    rows = Dataset.from_dict({"a": ["the soup was fine and bland"], "b": ["the room was warm"]})
    short = tokenize(rows, tokenizer, ("a", "b"), max_length=8)
    assert len(short["input_ids"][0]) == 8
    loose = tokenize(rows, tokenizer, ("a", "b"), max_length=32)
    assert len(loose["input_ids"][0]) == 6 + 4 + 3
    padded = tokenize(rows, tokenizer, ("a", "b"), max_length=32, pad=True)
    assert len(padded["input_ids"][0]) == 32
    assert sum(padded["attention_mask"][0]) == 13


def test_a_row_without_text():
    rows = Dataset.from_dict({"a": ["fine", None]})
    with pytest.raises(ValueError, match="split train: row 1 has None in the column 'a'"):
        tokenize(rows, generated_tokenizer(), ("a",), 8, what="split train")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A hundredth of IMDB, in its form: 125 positive and 125 negative in each labelled split."""
    folder = tmp_path_factory.mktemp("reviews")
    (folder / "imdb").mkdir()
    for split, count in (("train", 250), ("test", 250), ("unsupervised", 20)):
        labels = [-1 if split == "unsupervised" else int(row >= count // 2) for row in range(count)]
        texts = [f"{split} {row}" for row in range(count)]
        Dataset.from_dict({"text": texts, "label": labels}).to_parquet(folder / "imdb" / f"{split}.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("imdb", {"train": 400, "validation": 50, "test": 50}),
        ("imdb_25k_25k", {"train": 250, "test": 250}),
        ("imdb_25k_12k_12k", {"train": 250, "validation": 125, "test": 125}),
    ],
)
def test_the_splits_of_imdb_by_name(reviews, name, sizes):
    task = find(name, TEXTS)
    asked = [str(task.train), *(part.split for part in (*task.evaluation, *task.test))]
    loaded, again = (loading.load_task(task, asked, reviews) for _ in range(2))
    assert {split: len(rows) for split, rows in loaded.items()} == sizes
    assert all(loaded[split]["text"][:] == again[split]["text"][:] for split in sizes)  # whatever a run's seed is
    texts = [text for split in sizes for text in loaded[split]["text"]]
    assert sorted(texts) == sorted(f"{split} {row}" for split in ("train", "test") for row in range(250))
    for split, rows in loaded.items():
        share = sum(rows["label"]) / len(rows)
        # Drawn splits are as balanced as chance makes them: within four deviations of a draw without replacement.
        deviation = 0.5 * ((500 - len(rows)) / 499 / len(rows)) ** 0.5
        assert share == 0.5 if name == "imdb_25k_25k" else abs(share - 0.5) < 4 * deviation, split
    if name == "imdb_25k_25k":
        assert {text.split()[0] for text in loaded["train"]["text"]} == {"train"}
        assert {text.split()[0] for text in loaded["test"]["text"]} == {"test"}

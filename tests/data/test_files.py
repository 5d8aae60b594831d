"""Files of one's own: each is read as it stands, or refused in one line that has the row and the way out."""

import csv
import json
import os

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from hf_rat.data.encoding import Labels, require_texts
from hf_rat.data.files import read_file, stream_file
from hf_rat.data.reading import Reading


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(tmp_path, content, name="train.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def read(tmp_path, content, name="train.csv", encoding="utf-8", **reading):
    return read_file("--train_file", write(tmp_path, content, name, encoding), Reading(**reading))


def refused(call, *args, **kwargs):
    with pytest.raises(ValueError, match=r"\S") as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["train[1].csv", "train?.csv", "tr*n.csv", "[a-z].csv", "a{1,2}.csv", "ü ñ.csv"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_name_is_no_pattern(tmp_path, name, stream):
    for other in ("train1.csv", "train2.csv", "train.csv", "a1.csv", "x.csv"):
        write(tmp_path, "text,label\nanother file,1\n", other)
    path = write(tmp_path, "text,label\nthis file,0\n", name)
    rows = stream_file("--train_file", path) if stream else read_file("--train_file", path)
    assert list(rows) == [{"text": "this file", "label": 0}]


@pytest.mark.parametrize("name", ["train[1].parquet", "tr*n.parquet", "t?.parquet", ".hidden.parquet"])
@pytest.mark.parametrize("stream", [False, True])
def test_nor_is_that_of_a_parquet_file(tmp_path, name, stream):
    folder = tmp_path / "a[b]" / ".deep"
    folder.mkdir(parents=True)
    Dataset.from_dict({"text": ["another"]}).to_parquet(folder / "train1.parquet")
    Dataset.from_dict({"text": ["another"]}).to_parquet(folder / "tx.parquet")
    Dataset.from_dict({"text": ["this"]}).to_parquet(folder / name)
    rows = stream_file("--train_file", folder / name) if stream else read_file("--train_file", folder / name)
    assert list(rows) == [{"text": "this"}]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_file_that_is_replaced_is_read_again(tmp_path, ending):
    path = tmp_path / f"train.{ending}"
    fingerprints = set()
    for word in ("old", "new"):
        frame = pd.DataFrame({"text": [word], "label": [0]})
        if ending == "parquet":
            frame.to_parquet(path)
        elif ending in ("csv", "tsv"):
            frame.to_csv(path, index=False, sep="," if ending == "csv" else "\t")
        else:
            frame.to_json(path, orient="records", lines=ending == "jsonl")
        os.utime(path, (1_700_000_000, 1_700_000_000))
        rows = read_file("--train_file", path)
        assert rows["text"][:] == [word]
        # What is made of the rows is cached too, by their fingerprint.
        assert rows.map(lambda row: {"again": row["text"]})["again"][:] == [word]
        fingerprints.add(rows._fingerprint)
    assert len(fingerprints) == 2


def test_an_unchanged_file_is_read_once(tmp_path):
    path = write(tmp_path, "text,label\nfine,0\n")
    first, again = read_file("--train_file", path), read_file("--train_file", path)
    assert first.cache_files == again.cache_files
    assert first._fingerprint == again._fingerprint


@pytest.mark.parametrize(
    ("name", "content", "reading", "parts"),
    [
        (
            "a.csv",
            "label,text\n1,good, really good\n0,bad\n",
            {},
            ["row 0 (line 2) has 3 fields", "2 (label, text)", '"'],
        ),
        ("a.csv", "label,text\n1,good\n0\n", {}, ["row 1 (line 3) has 1 field,", "2 (label, text)"]),
        ("a.csv", 'label,text\n1,"a\nb"\n0,bad,worse\n', {}, ["row 1 (line 4) has 3 fields"]),
        ("a.tsv", "label\ttext\n1\ta\n0\tb\tc\n", {}, ["row 1 (line 3) has 3 fields", "quoting=minimal"]),
        (
            "a.csv",
            "1,a\n0,b,c\n",
            {"column_names": ("x", "y")},
            ["row 1 (line 2) has 3 fields", "column_names='x,y'"],
        ),
        ("a.csv", 'label,text\n1,"good" movie\n0,bad\n', {}, ["row 0 (line 2)", "quoting=none"]),
        ("a.csv", 'label,text\n1,fine\n0,"bad\n1,good\n', {}, ["row 1 (line 3)", "quoting=none"]),
        ("a.csv", "text,label,text\na,1,b\n", {}, ["two columns are called 'text'"]),
        ("a.csv", "text, text\na,1\n", {}, ["two columns are called 'text'"]),
        ("a.csv", "text;label\na;1\n", {}, ["';'", "separated by commas"]),
        ("a.tsv", "text,label\na,1\n", {}, ["','", "by tabs"]),
        ("a.tsv", '"text"\t"label"\n"a"\t"1"\n', {}, ["quoting=minimal"]),
        ("a.tsv", 'text\tlabel\n"he ""said"""\t1\nfine\t0\n', {}, ["Excel", "quoting=minimal", "quoting=none"]),
        ("a.csv", "text,label\n", {}, ["the file is empty"]),
        ("a.csv", "\n\n\n", {}, ["the file is empty"]),
        ("a.jsonl", '{"text": "a"}\n[1, 2]\n', {}, ["row 1 is [1, 2]"]),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', {}, ["row 1", "does not parse as json"]),
        ("a.json", '{"version": 1, "data": [{"text": "a"}]}', {}, ["'version', 'data'", "lines=True"]),
        ("a.json", '{"text": ["a", "b"], "label": [0, 1]}', {}, ["'text', 'label'", "lines=True"]),
        ("a.json", "[1, 2]", {}, ["row 0 is 1"]),
        ("a.json", "[]", {}, ["the file is empty"]),
        ("a.json", "", {}, ["the file is empty"]),
    ],
)
def test_what_is_refused(tmp_path, name, content, reading, parts):
    for reader in (read_file, stream_file):
        line = refused(reader, "--train_file", write(tmp_path, content, name), Reading(**reading))
        for part in (name, *parts):
            assert part in line


def test_an_encoding(tmp_path):
    content = 'text,label\n"a\nb",1\nfine,1\ncafé,0\n'
    line = refused(read, tmp_path, content, encoding="latin-1")
    assert "row 2 (line 5, byte 0xe9) is not utf-8; give encoding=" in line
    path = write(tmp_path, content, encoding="latin-1")
    assert read_file("--x", path, Reading(encoding="latin-1"))["text"][2] == "café"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path = write(tmp_path, content, encoding=encoding)
        assert "encoding=" in refused(read_file, "--x", path)
        assert read_file("--x", path, Reading(encoding=encoding))["text"][2] == "café"
    path = write(tmp_path, '{"text": "café"}\n{"text": "thé"}\n', "a.jsonl", "latin-1")
    assert "row 0 (line 1, byte 0xe9) is not utf-8; give encoding=" in refused(read_file, "--x", path)
    assert read_file("--x", path, Reading(encoding="latin-1"))["text"][:] == ["café", "thé"]
    path = write(tmp_path, "text,label\n好,1\n", encoding="gb18030")
    assert "gb18030" in refused(read_file, "--x", path)


def test_what_spreadsheets_and_systems_add(tmp_path):
    long = "word " * 60_000
    rows = read(tmp_path, f'\ufefftext , label\r\n"a ""b"", c\r\nd",1\r\n{long},0\r\nn\0l,1\r\n\r\n\r\n')
    assert rows.to_dict() == {"text": ['a "b", c\r\nd', long, "n\0l"], "label": [1, 0, 1]}
    assert csv.field_size_limit() == 131072  # as Python has it
    assert read(tmp_path, '\ufeff{"text": "a"}\n\n', "a.jsonl").to_dict() == {"text": ["a"]}
    index = read(tmp_path, ",text,label\n0,a,x\n1,b,y\n")
    assert index.column_names == ["Unnamed: 0", "text", "label"]
    upper = read(tmp_path, "text,label\na,x\n", "TRAIN.CSV")
    assert upper.to_dict() == {"text": ["a"], "label": ["x"]}


def test_quotes_of_tab_separated_files(tmp_path):
    """An inch, a quotation over two messages, and one around a whole message: three rows, as `wc -l` counts them."""
    content = 'label\ttext\nham\t5" disk\nspam\t"now\nham\tor never"\nham\t"call me"\n'
    rows = read(tmp_path, content, "sms.tsv")
    assert rows["text"][:] == ['5" disk', '"now', 'or never"', '"call me"']
    assert "1 field is wholly in quotes, which quoting=minimal takes off" in rows.info.description
    excel = 'label\ttext\nham\t"a\tb ""c""\nd"\nspam\te\n'
    assert read(tmp_path, excel, "sms.tsv", quoting="minimal")["text"][:] == ['a\tb "c"\nd', "e"]
    headless = read(tmp_path, "ham\tGo on\nspam\tWin\n", "sms.tsv", column_names=("label", "text"))
    assert headless.to_dict() == {"label": ["ham", "spam"], "text": ["Go on", "Win"]}


@pytest.mark.parametrize("row", [3, 30_000])
def test_a_column_has_one_type_however_long_it_is(tmp_path, row):
    lines = [f"t{index},{index % 5}" for index in range(row)]
    rows = read(tmp_path, "\n".join(["text,label", *lines, "late,", "end,1"]))
    assert rows.features["label"].dtype == "int64"
    assert f"row {row} of the training split has no label" in refused(Labels.of_column, rows, "label")
    halves = [f"t{index},{index % 5 + 0.5}" for index in range(row)]
    rows = read(tmp_path, "\n".join(["text,label", *halves, "late,", "end,1.5"]))
    assert rows.features["label"].dtype == "float64"
    assert f"row {row} of the training split has no label" in refused(Labels.of_column, rows, "label")
    rows = read(tmp_path, "\n".join(["text,label", *halves, "late,n/a", "end,1.5"]))
    assert f"row {row} has 'n/a'" in refused(Labels.of_column, rows, "label")
    lines = [json.dumps({"text": "a", "label": index % 2}) for index in range(row)]
    rows = read(tmp_path, "\n".join([*lines, '{"text": "b", "label": "1"}']), "a.jsonl")
    assert f"row {row} has the label '1'" in refused(Labels.of_column, rows, "label")


def test_text_is_text_whatever_stands_in_it(tmp_path):
    rows = read(tmp_path, "text,when,code,label\n123,1.50,007,1\n,2,008,0\n")
    assert rows.to_dict() == {"text": ["123", ""], "when": [1.5, 2.0], "code": ["007", "008"], "label": [1, 0]}
    assert read(tmp_path, "when,label\n1.50,1\n", text=("when",))["when"][:] == ["1.50"]
    words = read(tmp_path, "text,label\nNA,null\nnone,nan\n")
    assert words.to_dict() == {"text": ["NA", "none"], "label": ["null", "nan"]}


def test_json_as_pandas_writes_it(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": [1, 0, 1]}, index=[7, 3, 5])
    for options in ({}, {"orient": "records"}, {"orient": "records", "lines": True}, {"indent": 2}):
        frame.to_json(tmp_path / "a.json", **options)
        assert read_file("--x", tmp_path / "a.json").to_dict() == {"text": ["a", "b", "c"], "label": [1, 0, 1]}
    for orient in ("split", "values", "table"):
        frame.to_json(tmp_path / "a.json", orient=orient)
        refused(read_file, "--x", tmp_path / "a.json")
    rows = read(tmp_path, '{"text": "a", "n": 1}\n{"text": null, "n": 2.5, "m": true}\n', "a.jsonl")
    assert rows.to_dict() == {"text": ["a", None], "n": [1.0, 2.5], "m": [None, True]}
    assert read(tmp_path, '{"text": "one row"}', "a.json").to_dict() == {"text": ["one row"]}


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ([[1, 0], [0, 1]], "row 0 has the label [1, 0]; a label is a text or a number"),
        ([{"a": 1}, {"a": 2}], "row 0 has the label {'a': 1}; a label is"),
        ([1, 1, "1"], "row 0 has the label 1, row 2 has the label '1'"),
        ([True, 0, 1], "row 0 has the label True, row 1 has the label 0"),
        ([1, None, 2], "row 1 of the training split has no label"),
        (["a", " ", "b"], "row 1 of the training split has no label"),
        (["a", "a", "a"], "all 3 rows of the training split have the label 'a'"),
        (["a", "b", "a "], "'a' and 'a ' differ by spaces"),
        ([1.0, 0.0, 1.0], "do_regression="),
        (["0.5", "1.5", "2"], "do_regression="),
        (["1", "2", "?", "3"], "row 2 has '?'"),
        (list(range(100)), "100 different labels in 100 rows"),
        ([f"text {n}" for n in range(100)], "100 different labels in 100 rows, such as 'text 0'"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, part):
    lines = [json.dumps({"text": "a", "label": label}) for label in labels]
    path = write(tmp_path, "\n".join(lines), "a.jsonl")
    for rows in (read_file("--train_file", path), stream_file("--train_file", path)):
        assert part in refused(Labels.of_column, rows, "label")


def test_texts_of_several_types_are_refused_by_the_row_that_is_none(tmp_path):
    rows = read(tmp_path, '{"text": "a"}\n{"text": "b"}\n{"text": 5}\n', "a.jsonl")
    assert "--x: row 2 has 5 in the column 'text', which must be text" in refused(require_texts, rows, ["text"], "--x")


def test_labels_in_parquet_that_are_none():
    assert "row 0 has the label [1]" in refused(Labels.of_column, Dataset.from_dict({"y": [[1], [2]]}), "y")
    rows = Dataset.from_dict({"y": [0.5, float("nan"), 1.5]})
    assert "row 1 has the label nan" in refused(Labels.of_column, rows, "y")


def test_the_user_says_what_labels_are():
    stars = Dataset.from_dict({"y": [1, 5, 3, 10, 5]})
    assert Labels.of_column(stars, "y").names == ("1", "3", "5", "10")
    assert Labels.of_column(stars, "y", regression=True).regression
    written = Dataset.from_dict({"y": ["1", "5", "3", "10"]})
    assert Labels.of_column(written, "y").names == ("1", "3", "5", "10")
    scores = Labels.of_column(written, "y", regression=True).encode(written, "y", "x")
    np.testing.assert_array_equal(scores["label"][:], [1.0, 5.0, 3.0, 10.0])
    whole = Dataset.from_dict({"y": [1.0, 0.0, 1.0]})
    assert Labels.of_column(whole, "y", regression=True).regression
    assert Labels.of_column(whole, "y", regression=False).encode(whole, "y", "x")["label"][:] == [1, 0, 1]
    words = Dataset.from_dict({"y": ["a", "b"]})
    assert "row 0 has the label 'a', a regression needs a number" in refused(Labels.of_column, words, "y", True)


def test_one_label_is_the_same_in_a_number_and_in_words():
    labels = Labels.of_column(Dataset.from_dict({"y": [0, 1, 2]}), "y")
    assert labels.encode(Dataset.from_dict({"y": ["2", "0"]}), "y", "x")["label"][:] == [2, 0]
    assert labels.encode(Dataset.from_dict({"y": [2.0, 0.0]}), "y", "x")["label"][:] == [2, 0]
    words = Labels.of_column(Dataset.from_dict({"y": ["0", "1"]}), "y")
    assert words.names == ("0", "1")

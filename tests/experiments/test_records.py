"""Finished comparisons are read from their folders, of today and of before, and what is no comparison is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import accuracies, made

from hf_rat.experiments.records import alike, by_cell, former, metric_of, read

RESULTS = Path(__file__).parents[2] / "results"
FINAL = sorted(path for path in RESULTS.glob("*/*/final") if list(path.glob("*/seed-*.json")))


@pytest.mark.parametrize("folder", FINAL, ids=lambda path: path.parent.name)
def test_every_committed_comparison_is_read(folder):
    """Against a walk over the files that knows nothing of records."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/seed-*.json")]
    ours = read([folder])
    assert sorted((r.method, r.seed, r.command) for r in ours) == sorted(
        (f["method"], f["seed"], f["command"]) for f in files
    )
    assert {r.cell for r in ours} == {""}
    assert all(r.finished and r.scores and r.versions["torch"] for r in ours)


def test_several_old_folders_are_a_cell_each_called_by_what_tells_them_apart():
    records = read([RESULTS / "small_models" / name / "final" for name in ("imdb_bilstm", "tnews_textcnn")])
    assert list(by_cell(records)) == ["imdb_bilstm", "tnews_textcnn"]
    assert len(records) == 36


def test_rows_are_in_the_order_of_the_table_that_lies_there(tmp_path):
    for name in ("b", "a", "c"):
        made(tmp_path / name, name, accuracies(0.5))
    assert [record.method for record in read([tmp_path])] == ["a", "b", "c"]
    table = {"command": "hf-rat compare", "methods": [{"method": "c"}, {"method": "gone"}, {"method": "a"}]}
    (tmp_path / "results.json").write_text(json.dumps(table))
    assert [record.method for record in read([tmp_path])] == ["c", "a", "b"]
    assert former([tmp_path, tmp_path / "a"]) == [table]


def test_data_sets_and_models_are_cells(tmp_path):
    for data in ("rte", "mrpc"):
        for model in ("x/small", "x/large"):
            folder = tmp_path / data / model.replace("/", "-")
            made(folder / "plain", "plain", accuracies(0.5, 0.6), dataset=data, model=model)
            made(folder / "control", "plain --epochs 9", accuracies(0.7), dataset=data, model=model, label="as dear")
    cells = by_cell(read([tmp_path]))
    assert set(cells) == {"rte, x/small", "rte, x/large", "mrpc, x/small", "mrpc, x/large"}
    assert {method: list(seeds) for method, seeds in cells["rte, x/large"].items()} == {
        "plain": [1, 2],
        "as dear": [1],
    }
    assert set(by_cell(read([tmp_path / "rte"]))) == {"rte, x/small", "rte, x/large"}, "a data set of it alone"
    assert set(by_cell(read([tmp_path / "rte" / "x-small"]))) == {"rte, x/small"}


def test_one_axis(tmp_path):
    made(tmp_path / "rte" / "plain", "plain", accuracies(0.5), dataset="rte", model=None)
    made(tmp_path / "rte" / "plain" / "trials", "trial", accuracies(0.9), dataset="rte", model=None)
    assert [(record.cell, record.method) for record in read([tmp_path])] == [("rte", "plain")]
    assert [(record.cell, record.method) for record in read([tmp_path / "rte"])] == [("rte", "plain")]


def test_what_a_record_says(tmp_path):
    results = {
        "epoch": 3,
        "eval_samples": 9,
        "test_f1": 0.5,
        "eval_accuracy": 1,
        "eval_runtime_mm": 3.0,
        "eval_x": "y",
    }
    made(tmp_path / "plain", "plain", {4: results, 5: None}, versions={"torch": "9"})
    (tmp_path / "plain" / "search.json").write_text('{"trials": 30, "held_back": {"eval_f1": 0.75}}')
    first, second = read([tmp_path])
    assert first.scores == ["test_f1", "eval_accuracy"]
    assert (first.number("eval_accuracy"), first.number("gone"), first.number("eval_x")) == (1.0, None, None)
    assert (first.versions, first.search["trials"]) == ({"torch": "9"}, 30)
    assert (second.finished, second.scores, second.results) == (False, [], {})


def test_predictions(tmp_path):
    made(tmp_path / "plain", "plain", {1: {"eval_accuracy": 1.0}})
    (record,) = read([tmp_path])
    assert record.predictions("eval_accuracy") is None
    (tmp_path / "plain" / "seed-1").mkdir()
    for name, values in (("eval_predictions", [0, 1]), ("eval_predictions_mm", [2]), ("test_predictions", [3])):
        path = tmp_path / "plain" / "seed-1" / f"{name}.npz"
        np.savez(path, predicted=np.array(values), expected=np.array(values) + 1, logits=np.zeros((len(values), 2)))
    for score, wanted in (("eval_accuracy", [0, 1]), ("eval_f1_mm", [2]), ("test_polar_f1", [3])):
        predicted, expected = record.predictions(score)
        assert (predicted.tolist(), expected.tolist()) == (wanted, [value + 1 for value in wanted])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"test_predictions\.npz is cut short"):
        record.predictions("test_accuracy")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("eval_accuracy", ("accuracy", "")),
        ("test_polar_f1_mm", ("polar_f1", "mm")),
        ("eval_combined_score", ("combined_score", "")),
        ("eval_loss_train", ("loss", "train")),
        ("eval_my_own", ("my_own", "")),
    ],
)
def test_metric_and_split_of_a_score(name, parts):
    assert metric_of(name) == parts


def test_alike(tmp_path):
    made(tmp_path / "x" / "a", "fgm(1)", accuracies(0.5), dataset="x")
    made(tmp_path / "y" / "b", "fgm(2)", accuracies(0.6), dataset="y")
    made(tmp_path / "y" / "c", "plain", accuracies(0.6), dataset="y")
    records = read([tmp_path])
    assert {r.method for r in alike(records, {"fgm": ["fgm(1)", "fgm(2)"]})} == {"fgm", "plain"}
    with pytest.raises(ValueError, match=r"--alike: no run is of the method 'fgm\(3\)'; there are: .*plain"):
        alike(records, {"fgm": ["fgm(3)"]})
    with pytest.raises(ValueError, match=r"seed-1\.json and .*seed-1\.json are both fgm with seed 1 on y"):
        alike(records, {"fgm": ["fgm(2)", "plain"]})


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: None, "is no folder of hf-rat compare: not there"),
        (lambda at: at.write_text("x"), "is no folder of hf-rat compare: a file"),
        (lambda at: at.mkdir(), "holds no run of hf-rat compare$"),
        (lambda at: made(at / "old" / "plain", "plain", accuracies(1)), "holds no run .*; there are runs in .*old$"),
        (lambda at: write(at / "all_results.json", "{}"), "is a single run; give"),
        (lambda at: write(at / "p" / "seed-1.json", '{"meth'), "is cut short"),
        (
            lambda at: write(at / "p" / "seed-1.json", "{}"),
            "is not what hf-rat compare writes: it has no method, seed",
        ),
        (lambda at: write(at / "p" / "seed-1.json", "3"), "it has no method"),
        (lambda at: made(at / "p", "plain", {1: None}, finished=True), "its results are not there"),
        (lambda at: [made(at / name, "plain", accuracies(1)) for name in "pq"], "are both plain"),
    ],
)
def test_what_is_no_comparison_is_told_in_one_line(tmp_path, make, message):
    make(tmp_path / "it")
    with pytest.raises(ValueError, match=message) as caught:
        read([tmp_path / "it"])
    assert str(caught.value).count("\n") == 0
    assert str(tmp_path / "it") in str(caught.value)


def test_a_folder_twice(tmp_path):
    made(tmp_path / "a" / "plain", "plain", accuracies(1))
    with pytest.raises(ValueError, match="is named twice"):
        read([tmp_path / "a", tmp_path / "b", tmp_path / "a" / ".." / "a"])

"""`hf-rat analyze landscape` and `sharpness` end to end, stopped and gone on with."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from analyze_refusals import refused

from hf_rat.analysis import landscape_record
from hf_rat.cli import analyze, textcls

QUICK = ["--use_cpu", "--no_price", "--disable_tqdm", "True", "--num_train_epochs", "2", "--report_to", "none"]
SMALL = ["--embedding_size", "6", "--hidden_size", "4", "--save_strategy", "no", "--learning_rate", "0.05"]


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


def reviews(count):
    words = ("good", "bad", "great", "awful")
    return [(f"film {'no ' * (n % 3)}{n} is {words[n % 4]}", ("praise", "blame")[n % 2]) for n in range(count)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    files = ["--train_file", write(folder / "train.csv", reviews(40)), "--do_train", "--do_eval", "--model", "textcnn"]
    files += ["--validation_file", write(folder / "validation.csv", reviews(20))]
    for method in ("plain", "fgm"):
        assert textcls.main(["--reg", method, *files, *QUICK, *SMALL, "--output_dir", str(folder / method)]) == 0
    return [str(folder / method) for method in ("plain", "fgm")]


def test_a_grid_stopped_and_gone_on_with(runs, tmp_path, capsys, monkeypatch):
    words = ["landscape", *runs, "--points", "5", "--seed", "3", "--batch_size", "7", "--output_dir"]
    assert analyze.main([*words, str(tmp_path / "whole")]) == 0
    whole = json.loads((tmp_path / "whole" / "landscape.json").read_text())
    assert whole["xs"] == whole["ys"] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    settings = {name: whole[name] for name in ("radius", "points", "dimensions", "seed", "rule", "biases", "rows")}
    assert settings == {
        "radius": 1.0, "points": 5, "dimensions": 2, "seed": 3, "rule": "filter", "biases": "zero", "rows": 20
    }  # fmt: skip
    for name, run in zip(("plain", "fgm"), runs, strict=True):
        one = whole["models"][name]
        results = json.loads(Path(run, "all_results.json").read_text())
        assert one["losses"][2][2] == pytest.approx(results["eval_loss"], rel=1e-4)
        assert one["accuracies"][2][2] == pytest.approx(results["eval_accuracy"])
        assert len(one["areas"]) == len(whole["levels"]) == 8
        assert one["areas"] == sorted(one["areas"])
        assert 0 < one["areas"][-1] < 4
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"landscape.json", "contours.png", "surfaces.png"}

    write_json, left = landscape_record.write_json, [7]

    def interrupted(path, value):
        write_json(path, value)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(landscape_record, "write_json", interrupted)
    out = tmp_path / "parts"
    assert analyze.main([*words, str(out)]) != 0
    monkeypatch.setattr(landscape_record, "write_json", write_json)
    half = json.loads((out / "landscape.json").read_text())["models"]
    assert [sum(row is not None for row in one["losses"]) for one in half.values()] == [5, 2]
    capsys.readouterr()
    assert analyze.main([*words, str(out)]) == 0
    assert "2 rows from before" in capsys.readouterr().out
    assert json.loads((out / "landscape.json").read_text()) == whole, "bit for bit"
    assert "seed 3, not 4" in refused([*words, str(out), "--seed", "4"], capsys)
    (out / "landscape.json").write_text("{}")
    assert "no landscape that could be gone on with" in refused([*words, str(out)], capsys)


def test_a_grid_killed_and_gone_on_with(runs, tmp_path, capsys):
    """At whatever it was doing; in small batches, so that it takes a second or two."""
    words = ["landscape", *runs, "--points", "9", "--batch_size", "2", "--output_dir"]
    command = [sys.executable, "-m", "hf_rat.cli.main", "analyze", *words, str(tmp_path / "killed")]
    path = tmp_path / "killed" / "landscape.json"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (path.is_file() and json.loads(path.read_text())["models"]):
            time.sleep(0.01)
        process.kill()
    rows = [row for one in json.loads(path.read_text())["models"].values() for row in one["losses"]]
    assert None in rows
    assert analyze.main([*words, str(tmp_path / "killed")]) == 0
    assert "rows from before" in capsys.readouterr().out
    assert analyze.main([*words, str(tmp_path / "whole")]) == 0
    assert json.loads(path.read_text()) == json.loads((tmp_path / "whole" / "landscape.json").read_text())


def test_a_line_and_bad_flags(runs, tmp_path, capsys):
    words = ["landscape", *runs, "--dimensions", "1", "--points", "3", "--output_dir", str(tmp_path / "out")]
    assert analyze.main([*words, "--rule", "tensor", "--biases", "move"]) == 0
    found = json.loads((tmp_path / "out" / "landscape.json").read_text())
    assert (found["ys"], found["rule"], found["biases"]) == ([0.0], "tensor", "move")
    assert (tmp_path / "out" / "landscape.png").stat().st_size > 1000
    for flag, value in (("--radius", "0"), ("--radius", "nan"), ("--radius", "inf"), ("--points", "2")):
        assert f"{flag} {value}" in refused([*words[:-1], str(tmp_path / "no"), flag, value], capsys)
    assert not (tmp_path / "no").exists()


def test_sharpness(runs, tmp_path, capsys):
    words = ["sharpness", *runs, "--output_dir", str(tmp_path), "--probes", "3", "--steps", "4"]
    assert analyze.main(words) == 0
    for name, one in json.loads((tmp_path / "sharpness.json").read_text())["models"].items():
        assert name in capsys.readouterr().out or name == "fgm"
        assert one["worst_loss"] > one["loss"]
        assert one["eigenvalues"] == sorted(one["eigenvalues"], reverse=True)
        assert one["products"] == "double backward"
    for flag, value in (("--radius", "-1"), ("--steps", "0"), ("--eigenvalues", "0"), ("--probes", "1")):
        assert f"{flag} {value}" in refused([*words, flag, value], capsys)

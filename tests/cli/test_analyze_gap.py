"""`hf-rat analyze calibration` and `gap`, end to end on saved models."""

import json

import pytest
import torch
from transformers import BertForSequenceClassification

from hf_rat.cli import analyze
from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer

ROWS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two classifiers with dropout and one without, a regression, and rows."""
    folder, tokenizer = tmp_path_factory.mktemp("analyzed"), generated_tokenizer()
    for seed, (name, outputs, rate) in enumerate([("a", 2, 0.3), ("b", 2, 0.3), ("none", 2, 0.0), ("number", 1, 0.3)]):
        torch.manual_seed(seed)
        config = generated_config(tokenizer, hidden_size=16, layers=1, dropout=rate)
        config.initializer_range, config.num_labels = 0.5, outputs
        BertForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = generated_pairs(train=ROWS)["train"]
    rows.to_csv(folder / "rows.csv")
    rows.map(lambda row: {"label": row["label"] * 1.5}).to_csv(folder / "numbers.csv")
    return folder


def words(made, what, *names, rows="rows"):
    files = [f"--{split}_file={made}/{rows}.csv" for split in ("train", "validation")]
    return [what, *(str(made / name) for name in names), *files, "--text_column_names", "sentence1,sentence2"]


def analyzed(made, out, what, *names, more=(), rows="rows"):
    assert analyze.main([*words(made, what, *names, rows=rows), "--output_dir", str(out), *more]) == 0
    return json.loads((out / f"{what}.json").read_text(encoding="utf-8"))


def test_calibration(made, tmp_path, capsys):
    found = analyzed(made, tmp_path / "out", "calibration", "a", "b", more=["--bins", "5", "--fit_share", "0.25"])
    assert list(found["models"]) == ["a", "b"]
    for one in found["models"].values():
        assert (one["fitted"], one["measured"]) == (10, 30)
        assert sum(part["rows"] for part in one["after"]["bins"]) == 30
        assert len(one["after"]["bins"]) == 5
    told = capsys.readouterr().out
    assert f"{found['models']['a']['before']['ece']:.4f}" in told
    assert "drawn by seed 0" in told
    assert (tmp_path / "out" / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_gap(made, tmp_path, capsys):
    found = analyzed(made, tmp_path / "out", "gap", "a", "b", more=["--masks", "4", "--rate", "0.2"])
    for one in found["models"].values():
        assert one["terms"]["fd"] / 4 <= one["terms"]["el"]
        assert one["remark"]["units_off"]["add"] == 3  # of 16 units
        assert one["input_gradient_norm"] > 0
        assert 0 < one["agreement"] <= 1
    told = capsys.readouterr().out
    assert f"{found['models']['b']['averaged']['nll']:.4f}" in told
    assert (tmp_path / "out" / "gap.png").read_bytes().startswith(b"\x89PNG")
    again = analyzed(made, tmp_path / "again", "gap", "b", "a", more=["--masks", "4", "--rate", "0.2"])
    assert again["models"]["a"] == found["models"]["a"], "the same seed, whatever stands beside it"


def test_the_gap_of_numbers(made, tmp_path):
    found = analyzed(made, tmp_path / "out", "gap", "number", more=["--masks", "4", "--site", "none"], rows="numbers")
    assert list(found["models"]["number"]["averaged"]) == ["mse"]
    assert "remark" not in found["models"]["number"]


@pytest.mark.parametrize(
    ("what", "names", "more", "rows", "said"),
    [
        ("gap", ["a", "none"], ["--rate", "0.2"], "rows", "none: BertForSequenceClassification has no dropout"),
        ("gap", ["a"], ["--masks", "5"], "rows", "--masks 5: an even number of at least 4"),
        ("gap", ["a"], ["--rate", "0.01"], "rows", "rate=0.01: of the 16 units at 'logits' that is less than one"),
        ("gap", ["a"], ["--rate", "2"], "rows", "--rate 2.0: a share"),
        ("gap", ["a"], ["--site", "clasifier"], "rows", "no nn.Linear of this name"),
        ("gap", ["a"], ["--site", "recurrent"], "rows", "no layer whose forward takes recurrent_mask"),
        ("calibration", ["a"], ["--max_samples", "12"], "rows", "12 rows split into 6"),
        ("calibration", ["a"], ["--fit_share", "1"], "rows", "--fit_share 1.0"),
        ("calibration", ["a"], ["--bins", "0"], "rows", "--bins 0"),
        ("calibration", ["number"], [], "numbers", "is a regression, and only probabilities can be calibrated"),
    ],
)
def test_bad_input_is_one_line(made, tmp_path, capsys, what, names, more, rows, said):
    assert analyze.main([*words(made, what, *names, rows=rows), "--output_dir", str(tmp_path / "out"), *more]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert said in lines[-1]
    assert not (tmp_path / "out").exists()

"""`hf-rat submit`: from the predictions of runs to the leaderboard's files."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import BertForSequenceClassification

from hf_rat.cli.main import main
from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer
from hf_rat.data.submission import FILES, problems, write_answers
from hf_rat.data.tasks import CLUE, GLUE, find

# Names typed from what the scripts write.
NAMES = {"MNLI-mm.tsv": "mnli-mm", "MNLI-m.tsv": "mnli", "tnews11_predict.json": "clue-tnews"}


def a_run(folder, name, answers, **results):
    """The folder of a run that predicted one split."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["index\tprediction", *(f"{index}\t{answer}" for index, answer in enumerate(answers))]
    (folder / f"predict_results_{name}.txt").write_text("\n".join(lines) + "\n")
    if results:
        (folder / "all_results.json").write_text(json.dumps(results))
    return str(folder)


def runs_of(leaderboard, folder):
    """A run for every file of a leaderboard, with the names of the labels in turn; and the answers as numbers."""
    runs, values = [], {}
    for name, (task, part) in FILES.items():
        if task in leaderboard:
            numbers = [index % (len(task.labels) or 7) for index in range(part.rows)]
            shown = [f"{number - 0.5:.3f}" if task.regression else task.labels[number] for number in numbers]
            own = NAMES.get(name, task.name.replace("/", "-"))
            runs.append(a_run(folder / own, own, shown))
            values[name] = [number - 0.5 for number in numbers] if task.regression else numbers
    return runs, values


@pytest.fixture
def refused(capsys):
    def check(*words):
        capsys.readouterr()
        assert main(["submit", *map(str, words)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        return said

    return check


@pytest.mark.parametrize("leaderboard", ["glue", "clue"])
def test_the_files_are_those_that_the_numbers_give(tmp_path, leaderboard, capsys):
    """The other way to such a file is --submission_dir, from the numbers of the classes."""
    tasks = {"glue": GLUE, "clue": CLUE}[leaderboard]
    runs, values = runs_of(tasks, tmp_path / "runs")
    assert main(["submit", leaderboard, *runs, "--output_dir", str(tmp_path / "out")]) == 0
    for name, numbers in values.items():
        expected = write_answers(tmp_path / "by numbers", *FILES[name], numbers)
        assert (tmp_path / "out" / name).read_bytes() == expected.read_bytes(), name
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(values)
    assert problems(tmp_path / "out" / "submission.zip") == []
    assert "submission.zip is complete" in capsys.readouterr().out


def test_what_is_missing_is_listed_and_other_files_stay(tmp_path, capsys):
    wnli = a_run(tmp_path / "wnli", "wnli", ["not_entailment", "entailment"] * 73)
    assert main(["submit", "glue", wnli, "--output_dir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"WNLI.tsv: {wnli}\n" in said
    assert "still missing CoLA.tsv, SST-2.tsv, MRPC.tsv, STS-B.tsv, QQP.tsv, MNLI-m.tsv" in said
    rte = a_run(tmp_path / "rte", "rte", ["entailment"] * 3000)
    assert main(["submit", "glue", rte, "--output_dir", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["RTE.tsv", "WNLI.tsv"]
    assert (tmp_path / "out" / "WNLI.tsv").read_text().splitlines()[:3] == ["index\tprediction", "0\t0", "1\t1"]


def test_numbers_are_kept_within_the_bounds(tmp_path):
    stsb = a_run(tmp_path / "stsb", "stsb", ["-0.000", "-0.100", "5.201", "2.346"] + ["1.000"] * 1375)
    assert main(["submit", "glue", stsb, "--output_dir", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "STS-B.tsv").read_text().splitlines()
    assert lines[1:5] == ["0\t0.000", "1\t0.000", "2\t5.000", "3\t2.346"]


def test_of_several_runs_one_is_asked_for_or_the_best_by_rule(tmp_path, refused, capsys):
    """MRPC is scored by the mean of accuracy and F1; AX by MNLI, whose model answers it."""
    out = tmp_path / "out"
    runs = [
        a_run(
            tmp_path / f"mrpc-{seed}", "mrpc", [name] * 1725, eval_accuracy=0.9 - seed / 10, eval_combined_score=seed
        )
        for seed, name in enumerate(["not_equivalent", "equivalent", "equivalent"])
    ]
    said = refused("glue", *runs[:2], "--output_dir", out)
    assert "2 runs answer mrpc" in said
    assert all(run in said for run in runs[:2])
    assert "--best" in said
    assert not out.exists(), "nothing is written before everything is right"
    assert main(["submit", "glue", *runs[:2], "--output_dir", str(out), "--best"]) == 0
    assert "(best eval_combined_score of 2 runs, 1.0000)" in capsys.readouterr().out
    assert set((out / "MRPC.tsv").read_text().split()[3::2]) == {"1"}
    tied = [a_run(tmp_path / name, "ax", ["neutral"] * 1104, eval_accuracy=0.5) for name in ("a", "b")]
    assert main(["submit", "glue", *tied, "--output_dir", str(out), "--best"]) == 0
    assert f"AX.tsv: {tied[0]} (best eval_accuracy of 2 runs, 0.5000, the first of 2" in capsys.readouterr().out
    unscored = a_run(tmp_path / "unscored", "ax", ["neutral"] * 1104)
    assert "all_results.json has no eval_accuracy" in refused("glue", *tied, unscored, "--output_dir", out, "--best")


def test_a_run_named_twice_is_one(tmp_path):
    wnli = a_run(tmp_path / "wnli", "wnli", ["entailment"] * 146)
    assert main(["submit", "glue", wnli, f"{wnli}/", "--output_dir", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("name", "answers", "message"),
    [
        ("rte", ["entailment"] * 2999, "has 2999 predictions, the leaderboard expects 3000 of rte"),
        ("rte", ["entailment"] * 2999 + ["entail"], "line 3001: 'entail' is not a label of rte"),
        ("rte", ["entailment"] * 7 + ["0"] + ["entailment"] * 2992, "line 9: '0' is not a label of rte"),
        ("stsb", ["1.0"] * 1378 + ["nan"], "line 1380: 'nan' is not a number"),
        ("stsb", ["1.0"] * 1378 + ["high"], "line 1380: 'high' is not a number"),
        ("imdb", ["positive"], "is of no task of the GLUE leaderboard, which has cola, sst2"),
        ("clue-tnews", ["100"] * 10000, "is of no task of the GLUE leaderboard"),
    ],
)
def test_answers_that_the_leaderboard_would_refuse(tmp_path, refused, name, answers, message):
    assert message in refused("glue", a_run(tmp_path / "run", name, answers), "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_cut_or_out_of_order(tmp_path, refused):
    run = Path(a_run(tmp_path / "run", "wnli", ["entailment"] * 146))
    path = run / "predict_results_wnli.txt"
    whole = path.read_text()
    for text, message in (
        (whole[:-4], "no whole file of predictions"),
        (whole.replace("\n3\t", "\n4\t"), "line 5: the index is '4', it must be 3"),
        ("", "no whole file"),
    ):
        path.write_text(text)
        assert message in refused("glue", run, "--output_dir", tmp_path / "out")
    path.write_bytes(b"\xff\xfe")
    assert "cannot be read" in refused("glue", run, "--output_dir", tmp_path / "out")


def test_a_folder_that_is_no_run(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    assert "is no folder" in refused("glue", tmp_path / "absent", "--output_dir", tmp_path / "out")
    assert "is no run" in refused("glue", tmp_path / "empty", "--output_dir", tmp_path / "out")
    (tmp_path / "empty" / "all_results.json").write_text("{}")
    assert "ran without --do_predict" in refused("glue", tmp_path / "empty", "--output_dir", tmp_path / "out")
    assert "invalid choice: 'superglue'" in refused("superglue", tmp_path, "--output_dir", tmp_path / "out")
    assert "--output_dir" in refused("glue", tmp_path)


def test_a_folder_that_cannot_be_written_or_has_the_other_leaderboard_s(tmp_path, refused):
    wnli = a_run(tmp_path / "wnli", "wnli", ["entailment"] * 146)
    (tmp_path / "file").write_text("mine")
    assert "--output_dir" in refused("glue", wnli, "--output_dir", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    iflytek = find("clue/iflytek", CLUE)
    write_answers(tmp_path / "mixed", iflytek, iflytek.test[0], [0] * 2600)
    assert "iflytek_predict.json: a file of CLUE" in refused("glue", wnli, "--output_dir", tmp_path / "mixed")


def test_from_a_real_run(tmp_path, monkeypatch):
    """A tiny model trains on made-up rows and answers a test split of the right length: both ways, one file."""
    task, tokenizer = find("wnli"), generated_tokenizer()
    rows = generated_pairs(train=146)["train"]
    (tmp_path / "data" / task.folder).mkdir(parents=True)
    for split in ("train", "validation", "test"):
        labels = [-1 if split == "test" else index % 2 for index in range(146)]
        columns = {name: rows[name][:] for name in task.text_columns}
        Dataset.from_dict({**columns, "label": labels}).to_parquet(
            tmp_path / "data" / task.folder / f"{split}.parquet"
        )
    torch.manual_seed(0)
    BertForSequenceClassification(generated_config(tokenizer, hidden_size=16, layers=1)).save_pretrained(
        tmp_path / "m"
    )
    tokenizer.save_pretrained(tmp_path / "m")
    words = (
        f"glue --task_name wnli --model_name_or_path {tmp_path}/m --data_dir {tmp_path}/data --max_steps 3 --use_cpu"
    )
    words += f" --do_train --do_eval --do_predict --submission_dir {tmp_path}/direct --output_dir {tmp_path}/run"
    assert main([*words.split(), "--learning_rate", "0.05", "--disable_tqdm", "true", "--report_to", "none"]) == 0
    assert main(["submit", "glue", str(tmp_path / "run"), "--output_dir", str(tmp_path / "out")]) == 0
    written = (tmp_path / "out" / "WNLI.tsv").read_text()
    assert written == (tmp_path / "direct" / "WNLI.tsv").read_text()
    assert written.count("\n") == 147

"""`hf-rat analyze` end to end, on runs that `hf-rat textcls` and `glue` have made."""

import csv
import json
import os
import shutil

import pytest
import torch
from analyze_refusals import refused
from datasets import ClassLabel, Dataset, Features, Value
from transformers import BertForSequenceClassification

from hf_rat.analysis.answers import answers_of
from hf_rat.analysis.attacks import attacked
from hf_rat.analysis.subject import read_subjects
from hf_rat.cli import analyze, glue, textcls
from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer
from hf_rat.finetuning.data_record import FILE

PRAISE, BLAME = ("good", "great", "lovely"), ("bad", "awful", "dull")
QUICK = ["--use_cpu", "--no_price", "--disable_tqdm", "True", "--num_train_epochs", "2", "--report_to", "none"]


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


def reviews(count, labels=("blame", "praise")):
    words = [(word, labels[1]) for word in PRAISE] + [(word, labels[0]) for word in BLAME]
    return [(f"the film number {n} is {words[n % 6][0]}", words[n % 6][1]) for n in range(count)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the runs plain/seed-1 and fgm/seed-1, and the files that they were trained on."""
    folder = tmp_path_factory.mktemp("runs")
    files = ["--train_file", write(folder / "train.csv", reviews(48))]
    files += ["--validation_file", write(folder / "validation.csv", reviews(30))]
    for method in ("plain", "fgm"):
        small = ["--embedding_size", "12", "--hidden_size", "6", "--save_strategy", "no", "--learning_rate", "0.02"]
        words = ["--reg", method, *files, "--do_train", "--do_eval", *QUICK, *small, "--model", "textcnn"]
        assert textcls.main([*words, "--max_seq_length", "32", "--output_dir", str(folder / method / "seed-1")]) == 0
    return folder


@pytest.fixture
def runs(made):
    return [str(made / method / "seed-1") for method in ("plain", "fgm")]


def test_robustness_of_two_runs(runs, made, tmp_path, capsys):
    out = tmp_path / "out"
    attacked = write(tmp_path / "attacked.csv", [(text.replace("film", "flim"), label) for text, label in reviews(30)])
    words = ["robustness", *runs, "--output_dir", str(out), "--texts", attacked, "--noise_rates", "0.2"]
    assert analyze.main([*words, "--radii", "0.1", "0.3", "--mask_rates", "0.5", "--pgd_steps", "3"]) == 0
    found = json.loads((out / "robustness.json").read_text())
    assert found["runs"] == {"plain/seed-1": runs[0], "fgm/seed-1": runs[1]}
    assert (found["rows"], found["split"]) == (30, "validation")
    assert list(found["curves"]) == ["character noise", "fgm", "pgd", "random masks", "adversarial masks", "texts"]
    results = json.loads((made / "plain" / "seed-1" / "all_results.json").read_text())
    for curve in found["curves"].values():
        clean = curve["models"]["plain/seed-1"][0]
        assert clean["loss"] == pytest.approx(results["eval_loss"], rel=1e-4)
        assert clean["accuracy"] == pytest.approx(results["eval_accuracy"])
        assert len(curve["differences"]["fgm/seed-1"]) == len(curve["sizes"])
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"character_noise.png", "fgm.png", "pgd.png", "random_masks.png", "adversarial_masks.png"}
    assert "Written to" in capsys.readouterr().out


def test_rows_are_those_of_the_run_unless_others_are_named(runs, made, tmp_path):
    (subject,) = read_subjects(runs[:1], {})
    assert [text for (text,) in subject.rows.texts] == [text for text, _ in reviews(30)]
    assert subject.max_length == 32
    part = read_subjects(runs[:1], {}, max_samples=7)[0].rows
    assert [subject.rows.texts[number] for number in part.numbers] == list(part.texts)
    assert len(part) == 7
    other = write(tmp_path / "other.csv", reviews(5))
    (subject,) = read_subjects(runs[:1], {"validation_file": other})
    assert len(subject.rows) == 5
    (subject,) = read_subjects(runs[:1], {"test_file": other, "max_seq_length": 3}, "test", batch_size=2)
    batches = subject.encode()
    assert [len(batch["labels"]) for batch in batches] == [2, 2, 1]
    assert batches[0]["input_ids"].shape == (2, 3)
    labels = torch.cat([batch["labels"] for batch in batches]).tolist()
    names = [subject.model.config.id2label[label] for label in labels]
    assert names == [label for _, label in reviews(5)]


def test_the_rows_that_a_run_was_trained_on(made, tmp_path, capsys):
    """Every text has a number of its own, and the vocabulary is made of the training rows."""
    files = ["--train_file", str(made / "train.csv"), "--validation_file", str(made / "validation.csv")]
    small = ["--embedding_size", "12", "--hidden_size", "6", "--save_strategy", "no", "--min_count", "1"]
    words = [*files, "--do_train", "--do_eval", *QUICK, *small, "--model", "textcnn"]
    sizes = {"nine": ["9"], "seven": ["9", "--max_train_samples", "7"], "more": ["20"]}
    for name, size in sizes.items():
        assert textcls.main([*words, "--train_size", *size, "--output_dir", str(tmp_path / name)]) == 0
    nine, seven, more = (str(tmp_path / name) for name in sizes)
    (subject,) = read_subjects([nine], {}, "train")
    numbers = {word for (text,) in subject.rows.texts for word in text.split() if word.isdigit()}
    assert len(subject.rows) == 9
    assert numbers == {word for word in subject.tokenizer.get_vocab() if word.isdigit()}
    assert read_subjects([seven], {}, "train")[0].rows.texts == subject.rows.texts[:7]
    assert read_subjects([nine, more], {})[0].rows.texts == read_subjects([seven], {})[0].rows.texts
    capsys.readouterr()
    line = refused(["gap", nine, more, "--output_dir", str(tmp_path / "out"), "--split", "train"], capsys)
    assert "train_size: 20 and 9" in line


def test_a_checkpoint_and_the_built_in_example(tmp_path, monkeypatch):
    """What a run without data was evaluated on is made again from its seed."""
    monkeypatch.chdir(tmp_path)
    words = ["--alone", *QUICK, "--max_steps", "4", "--seed", "3", "--save_strategy", "steps", "--save_steps", "2"]
    assert glue.main([*words, "--eval_strategy", "no", "--output_dir", "run"]) == 0
    subjects = read_subjects([tmp_path / "run", tmp_path / "run" / "checkpoint-2"], {})
    assert [subject.name for subject in subjects] == ["run", "checkpoint-2"]
    assert len(subjects[1].rows) == 2000
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    out = tmp_path / "out"
    few = ["--measures", "fgm", "--radii", "0.1", "--batch_size", "250"]
    assert analyze.main(["robustness", "run", "--output_dir", str(out), *few]) == 0
    clean = json.loads((out / "robustness.json").read_text())["curves"]["fgm"]["models"]["run"][0]
    assert clean["loss"] == pytest.approx(results["eval_loss"], rel=1e-4)
    assert clean["accuracy"] == pytest.approx(results["eval_accuracy"])


def test_what_is_no_run(runs, tmp_path, capsys):
    out = ["--output_dir", str(tmp_path / "out")]
    assert "RUN 'nowhere' is no folder" in refused(["robustness", runs[0], "nowhere", *out], capsys)
    assert "is no run: it has no config.json" in refused(["robustness", str(tmp_path), *out], capsys)
    assert "is given twice" in refused(["robustness", runs[0], runs[0], *out], capsys)
    cut = tmp_path / "checkpoint-7"
    shutil.copytree(runs[0], cut)
    (cut / "trainer_state.json").unlink()
    assert "trainer_state.json is missing" in refused(["robustness", str(cut), *out], capsys)
    language = tmp_path / "language"
    language.mkdir()
    (language / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    line = refused(["robustness", str(language), *out], capsys)
    assert "has a GPT2LMHeadModel: a classifier of texts is needed" in line
    line = refused(["robustness", runs[0], *out, "--task_name", "rte", "--test_file", "x.csv"], capsys)
    assert "--task_name 'rte' and --test_file 'x.csv' name two data sets" in line
    assert not (tmp_path / "out").exists()


def test_label_sets_must_agree(runs, made, tmp_path, capsys):
    out = ["--output_dir", str(tmp_path / "out")]
    other = write(tmp_path / "other.csv", reviews(12, labels=("thumbs down", "thumbs up")))
    line = refused(["robustness", *runs, *out, "--train_file", other, "--validation_file", other], capsys)
    assert "knows the labels blame, praise and the data have thumbs down, thumbs up" in line
    scores = write(tmp_path / "scores.csv", [(text, n / 7) for n, (text, _) in enumerate(reviews(12))])
    line = refused(["robustness", *runs, *out, "--train_file", scores, "--validation_file", scores], capsys)
    assert "predicts a class, and the data have a number" in line


def test_runs_of_other_data(runs, tmp_path, capsys):
    copied = tmp_path / "copied"
    shutil.copytree(runs[1], copied)
    told = json.loads((copied / FILE).read_text())
    told["flags"]["validation_file"] = write(tmp_path / "other.csv", reviews(8))
    (copied / FILE).write_text(json.dumps(told))
    out = ["--output_dir", str(tmp_path / "out")]
    line = refused(["robustness", runs[0], str(copied), *out], capsys)
    assert "was trained on other data" in line
    assert "validation_file" in line
    assert len(read_subjects([runs[0], copied], {"validation_file": told["flags"]["validation_file"]})[1].rows) == 8
    (copied / FILE).write_text("{")
    assert f"{FILE} cannot be read" in refused(["robustness", str(copied), *out], capsys)
    (copied / FILE).unlink()
    assert "nothing says which data: give --task_name" in refused(["robustness", str(copied), *out], capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--noise_rates", "2"], "--noise_rates 2"),
        (["--measures", "pgd", "--radii", "-1"], "--radii -1"),
        (["--measures", "random_masks", "--mask_rates", "1"], "--mask_rates 1"),
        (["--measures", "pgd", "--pgd_steps", "0"], "--pgd_steps 0"),
        (["--draws", "0"], "--draws 0"),
        (["--measures"], "--measures: nothing is measured"),
        (["--max_samples", "0"], "--max_samples 0"),
        (["--measures", "hotflip"], "invalid choice: 'hotflip'"),
        (["--split", "test"], "--test_file"),
        (["--texts", "nowhere.csv"], "--texts 'nowhere.csv': no such file"),
    ],
)
def test_bad_flags_are_one_line(runs, tmp_path, capsys, words, said):
    out = tmp_path / "out"
    assert said in refused(["robustness", runs[0], "--output_dir", str(out), *words], capsys)
    assert not out.exists()


def test_a_folder_that_cannot_be_written(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = refused(["robustness", runs[0], "--output_dir", str(tmp_path / "file" / "out")], capsys)
    assert "--output_dir" in line
    blocked = tmp_path / "out"
    (blocked / "fgm.png").mkdir(parents=True)
    words = ["robustness", runs[0], "--output_dir", str(blocked), "--measures", "fgm", "--radii", "0.1"]
    assert "cannot be written" in refused(words, capsys)
    assert os.listdir(blocked / "fgm.png") == []


@pytest.fixture
def glue_data(tmp_path):
    """Splits of two GLUE tasks, with the Hub's columns, and a tiny BERT to train on them."""
    rows = generated_pairs(train=24)["train"]
    texts = {name: rows[name][:] for name in ("sentence1", "sentence2")}
    for task, labels in (("rte", rows["label"][:]), ("stsb", [n % 6 for n in range(24)])):
        where = tmp_path / "glue" / task
        where.mkdir(parents=True)
        kind = Value("float32") if task == "stsb" else ClassLabel(names=["entailment", "not_entailment"])
        features = Features({**dict.fromkeys(texts, Value("string")), "label": kind})
        for split in ("train", "validation"):
            Dataset.from_dict({**texts, "label": labels}, features=features).to_parquet(where / f"{split}.parquet")
    tokenizer = generated_tokenizer()
    BertForSequenceClassification(generated_config(tokenizer, hidden_size=16, layers=1)).save_pretrained(
        tmp_path / "m"
    )
    tokenizer.save_pretrained(tmp_path / "m")
    words = ["--data_dir", str(tmp_path), "--model_name_or_path", str(tmp_path / "m"), "--do_train", "--do_eval"]
    return [*words, *QUICK, "--max_steps", "2", "--learning_rate", "0.05"]


@pytest.mark.parametrize(
    "more",
    [
        ["--task_name", "rte", "--validation_from_train", "0.25"],
        ["--task_name", "stsb", "--ignore_mismatched_sizes"],
        ["--task_name", "rte", "--lora_r", "2", "--lora_target_modules", "query,value"],
    ],
    ids=["pairs, held back", "regression", "adapter"],
)
def test_rows_and_models_of_glue(glue_data, tmp_path, more):
    if "--lora_r" in more:
        pytest.importorskip("peft")
    out = tmp_path / "out"
    assert glue.main([*glue_data, *more, "--output_dir", str(out)]) == 0
    results = json.loads((out / "all_results.json").read_text())
    (subject,) = read_subjects([out], {})
    (found,) = answers_of(subject.model, subject.encode())
    assert len(found.losses) == results["eval_samples"]
    assert found.losses.mean() == pytest.approx(results["eval_loss"], rel=1e-4)
    if "stsb" in more:
        assert found.right is None
        assert attacked(subject.model, subject.encode(), "fgm", [0.05])[0].losses.mean() > found.losses.mean()
    else:
        assert found.right.mean() == pytest.approx(results["eval_accuracy"])


def test_labels_are_numbered_as_the_model_does(runs, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(runs[0], copied)
    config = json.loads((copied / "config.json").read_text())
    config |= {"id2label": {"0": "Praise", "1": "Blame"}, "label2id": {"Praise": 0, "Blame": 1}}
    (copied / "config.json").write_text(json.dumps(config))
    same, turned = read_subjects([runs[0], copied], {})
    for one, other in zip(same.encode(), turned.encode(), strict=True):
        assert torch.equal(one["labels"], 1 - other["labels"])

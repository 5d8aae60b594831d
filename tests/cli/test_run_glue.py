"""`run_glue.py` end to end, on a tiny model and generated files in the form of GLUE."""

import json
import os
from pathlib import Path

import launches
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from hf_rat.cli import glue
from hf_rat.cli import main as cli
from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer
from hf_rat.data.tasks import GLUE, find
from hf_rat.finetuning.blame import reported
from hf_rat.finetuning.flags import given_flags, read_flags
from hf_rat.finetuning.preset import apply_paper
from hf_rat.finetuning.pretrained import set_dropout

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny BERT on disk, with a head for two labels."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), generated_tokenizer()
    torch.manual_seed(0)
    BertForSequenceClassification(generated_config(tokenizer, hidden_size=16, layers=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every split of every GLUE task, twelve rows each, with the Hub's columns and unlabelled test splits."""
    folder = tmp_path_factory.mktemp("data")
    rows = generated_pairs(train=12)["train"]
    texts = (rows["sentence1"][:], rows["sentence2"][:])
    for task in GLUE:
        where = folder / task.folder
        where.mkdir(parents=True)
        columns = dict(zip(task.text_columns, texts, strict=False))
        kinds = [0.0, 2.5, 5.0] if task.regression else range(len(task.labels))
        labels = [kinds[index % len(kinds)] for index in range(12)]
        splits = {part.split: labels for part in task.evaluation} | ({task.train: labels} if task.train else {})
        splits |= {part.split: [-1.0 if task.regression else -1] * 12 for part in task.test}
        for split, numbers in splits.items():
            Dataset.from_dict({**columns, "label": numbers, "idx": list(range(12))}).to_parquet(
                where / f"{split}.parquet"
            )
    return str(folder)


@pytest.fixture
def common(model, data, tmp_path):
    """Flags for one short training."""
    out = tmp_path / "out"
    words = ["--model_name_or_path", model, "--data_dir", data, "--output_dir", str(out), "--max_steps", "2"]
    return [*words, "--report_to", "none", "--disable_tqdm", "true"]


def _error(argv, capsys):
    """The one line that a wrong command line is answered with."""
    capsys.readouterr()
    assert glue.main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_the_example_run(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "hf_rat")
    out = tmp_path / "out"
    words = ["--reg", "rdrop(alpha=1.0)", "--num_train_epochs", "2", "--output_dir", str(out)]
    words += ["--max_train_samples", "100", "--max_eval_samples", "200"]
    assert glue.main(words) == 0
    names = {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "all_results.json",
        "trainer_state.json",
        "README.md",
    }
    assert names <= {path.name for path in out.iterdir()}
    printed = capsys.readouterr().out
    assert "Regularizer rdrop(alpha=1.0" in caplog.text
    assert "2 forward and 2 backward passes" in caplog.text
    lines = printed[printed.rindex("\ntraining") :].strip().splitlines()
    head, _, plain, regularized, tuned = lines[:5]
    assert max(map(len, lines[:5])) <= 80
    assert head.split()[:3] == ["training", "dropout", "epochs"]
    assert (plain.split()[0], regularized.split()[0], tuned.split()[:2]) == ("plain", "rdrop", ["plain,", "tuned"])
    assert "made to show the effect" in printed
    assert str(out / "README.md") in lines[-1]
    for row, folder in ((plain, out / "plain"), (regularized, out), (tuned, out / "plain-tuned")):
        own = json.loads((folder / "all_results.json").read_text())
        # The loss is that of evaluation, the task's alone whatever was trained: no column mixes two kinds.
        assert row.split()[-4:-1] == [f"{own[f'eval_{name}']:.4f}" for name in ("accuracy_train", "accuracy", "loss")]
        assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    choice = json.loads((out / "plain-tuned" / "choice.json").read_text())
    assert {trial["dropout"] for trial in choice["trials"]} == {0.1, 0.3, 0.5}
    assert choice["held_back_loss"] == min(trial["held_back_loss"] for trial in choice["trials"])
    card = (out / "README.md").read_text()
    assert "rdrop(alpha=1.0" in card
    assert "trained from scratch" in card
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "stays_away", 1: "comes_back"}
    logits = model(
        **AutoTokenizer.from_pretrained(out)("the soup was awful", "the room was vile", return_tensors="pt")
    ).logits
    assert logits.shape == (1, 2)


def test_the_example_rule_is_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = glue.run([])
    assert results["eval_samples"] >= 2000
    assert results["eval_accuracy"] > 0.7  # the labels are balanced: guessing is 0.5
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["glue-001"]


def test_plain_and_the_regularizer_start_from_the_same_weights_and_data(tmp_path):
    """With a regularizer of weight zero the two models of the example are one."""
    out = tmp_path / "out"
    few = ["--max_train_samples", "64", "--max_eval_samples", "20"]
    glue.run(["--reg", "vat(alpha=0)", "--max_steps", "5", "--output_dir", str(out), *few])
    one, other = load_file(out / "model.safetensors"), load_file(out / "plain" / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_example_says_what_rat_stands_for_and_own_arguments_win(tmp_path, capsys, caplog):
    words = ["--num_train_epochs", "1", "--max_steps", "2", "--max_train_samples", "40", "--max_eval_samples", "20"]
    glue.run(["--reg", "rat", *words, "--output_dir", str(tmp_path / "bare")])
    said = capsys.readouterr().out
    assert f"--reg rat stands for {glue.EXAMPLE.rat} in this example" in said
    assert f"Regularizer {glue.EXAMPLE.rat[:-1].split(',')[0]}," in caplog.text
    glue.run(["--reg", "rat", "--reg_epsilon", "0.25", *words, "--output_dir", str(tmp_path / "own")])
    said = capsys.readouterr().out
    assert "stands for" not in said
    assert "Regularizer rat(epsilon=0.25, alpha=0.5" in caplog.text


def test_another_seed_draws_other_rows(tmp_path):
    one, other = glue.EXAMPLE.rows(1)["validation"], glue.EXAMPLE.rows(2)["validation"]
    assert one["sentence1"][:] != other["sentence1"][:]
    assert len(one) == len(other) >= 2000


@pytest.mark.parametrize("task", [task for task in GLUE if task.train], ids=lambda task: task.name)
def test_every_task_trains_evaluates_and_predicts(task, common, tmp_path, capsys):
    submission = tmp_path / "submission"
    words = ["--task_name", task.name, "--do_train", "--do_eval", "--do_predict", "--submission_dir", str(submission)]
    # A head with another number of labels than the model's on disk has to be asked for.
    assert glue.main([*words, *common, "--ignore_mismatched_sizes", "--reg", "rat(epsilon=0.1)"]) == 0
    out = tmp_path / "out"
    results = json.loads((out / "all_results.json").read_text())
    for part in task.evaluation:
        end = f"_{part.suffix}" if part.suffix else ""
        assert all(f"eval_{name}{end}" in results for name in (*task.metrics, "loss"))
        assert results[f"eval_samples{end}"] == 12
    assert {"train_results.json", "eval_results.json", "trainer_state.json", "README.md"} <= set(os.listdir(out))
    answered = [(task, part) for part in task.test]
    if task.name == "mnli":
        answered += [(find("ax"), part) for part in find("ax").test]
    predictions = {path.name for path in out.glob("predict_results_*.txt")}
    assert predictions == {
        f"predict_results_{other.name}{'-' + part.suffix if part.suffix else ''}.txt" for other, part in answered
    }
    assert {path.name for path in submission.iterdir()} == {part.file for _, part in answered}
    for _, part in answered:
        lines = (submission / part.file).read_text().splitlines()
        assert lines[0] == "index\tprediction"
        assert [line.split("\t")[0] for line in lines[1:]] == [str(index) for index in range(12)]
    printed = capsys.readouterr().out
    assert "still missing" in printed
    assert "12 predictions, the leaderboard expects" in printed


def test_the_predictions_are_those_of_the_saved_model(common, tmp_path, data):
    submission, out = tmp_path / "submission", tmp_path / "out"
    glue.run(["--task_name", "rte", "--do_train", "--do_predict", "--submission_dir", str(submission), *common])
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    rows = Dataset.from_parquet(f"{data}/glue/rte/test.parquet")
    expected = []
    for row in rows:
        logits = model(**tokenizer(row["sentence1"], row["sentence2"], return_tensors="pt")).logits
        expected.append(model.config.id2label[int(logits.argmax())])
    lines = (submission / "RTE.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[1] for line in lines] == expected


def test_a_classifier_with_its_own_order_of_labels_is_scored_and_submitted_in_the_task_s(model, data, tmp_path):
    """Renumbering the labels of a model changes neither its score nor its submission."""
    written = []
    for names in (["not_equivalent", "equivalent"], ["equivalent", "not_equivalent"]):
        own = AutoModelForSequenceClassification.from_pretrained(model)
        with torch.no_grad():
            own.classifier.weight.normal_(generator=torch.Generator().manual_seed(1), std=3.0)
            if names[0] == "equivalent":
                own.classifier.weight.copy_(own.classifier.weight.flip(0))
        own.config.id2label = dict(enumerate(names))
        own.config.label2id = {name: number for number, name in enumerate(names)}
        folder, submission = tmp_path / names[0], tmp_path / f"{names[0]}-submission"
        own.save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
        words = [
            "--task_name",
            "mrpc",
            "--data_dir",
            data,
            "--model_name_or_path",
            str(folder),
            "--do_eval",
            "--do_predict",
        ]
        words += ["--submission_dir", str(submission), "--output_dir", str(tmp_path / "out"), "--disable_tqdm", "true"]
        results = glue.run(words)
        written.append(((submission / "MRPC.tsv").read_text(), results["eval_accuracy"], results["eval_f1"]))
    assert written[0] == written[1]
    assert {line[-1] for line in written[0][0].splitlines()[1:]} == {"0", "1"}


def test_files_of_one_s_own(common, tmp_path):
    (tmp_path / "train.csv").write_text(
        "words,kind\nthe soup was fine,good\nthe soup was vile,bad\nthe tea was awful,bad\n"
    )
    (tmp_path / "test.json").write_text('{"words": "the cake was superb"}\n{"words": "the wine was stale"}\n')
    files = ["--train_file", str(tmp_path / "train.csv"), "--validation_file", str(tmp_path / "train.csv")]
    files += [
        "--test_file",
        str(tmp_path / "test.json"),
        "--text_column_names",
        "words",
        "--label_column_name",
        "kind",
    ]
    results = glue.run([*files, "--do_train", "--do_eval", "--do_predict", *common])
    assert results["eval_samples"] == 3
    lines = (tmp_path / "out" / "predict_results.txt").read_text().splitlines()
    assert len(lines) == 3
    assert {line.split("\t")[1] for line in lines[1:]} <= {"good", "bad"}
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.label2id == {
        "bad": 0,
        "good": 1,
    }


def test_float_labels_are_regressed(common, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nthe soup was fine,0.5\nthe soup was vile,-1.5\n")
    files = ["--train_file", str(tmp_path / "train.csv"), "--validation_file", str(tmp_path / "train.csv")]
    results = glue.run([*files, "--do_train", "--do_eval", "--ignore_mismatched_sizes", "--reg", "rat", *common])
    assert results["eval_mse"] == pytest.approx(results["eval_loss"], rel=1e-4)


def test_an_argument_file_and_flags_that_win(model, data, tmp_path):
    content = {
        "task_name": "rte",
        "data_dir": data,
        "model_name_or_path": model,
        "do_eval": True,
        "max_eval_samples": 5,
    }
    (tmp_path / "a.json").write_text(json.dumps({**content, "output_dir": str(tmp_path / "out")}))
    assert glue.run([str(tmp_path / "a.json")])["eval_samples"] == 5
    assert glue.run([str(tmp_path / "a.json"), "--max_eval_samples", "3"])["eval_samples"] == 3
    lines = [f"{name}: {json.dumps(value)}" for name, value in content.items()]
    (tmp_path / "a.yaml").write_text("\n".join([*lines, f"output_dir: {tmp_path / 'out'}"]))
    assert glue.run([str(tmp_path / "a.yaml")])["eval_samples"] == 5


def test_only_what_was_said_counts_as_given():
    given = given_flags(["--task_name", "rte", "--learning_rate", "5e-5", "--do_eval"], "x")
    assert given == {"task_name": "rte", "learning_rate": 5e-5, "do_eval": True}  # 5e-5 is also the default


@pytest.mark.parametrize(
    ("words", "batch", "rate", "regularizer"),
    [
        (["--task_name", "mrpc"], 32, 1e-5, ("epsilon=0.15", "alpha=0.8", "passes=2", "scope='table'")),
        (["--task_name", "cola", "--gradient_accumulation_steps", "3"], 8, 2e-5, ("epsilon=0.1,", "alpha=0.5")),
        (["--task_name", "wnli", "--learning_rate", "5e-5"], 16, 5e-5, ("epsilon=0.15",)),
        (["--task_name", "rte", "--reg_alpha", "1.5", "--per_device_train_batch_size", "4"], 4, 2e-5, ("alpha=1.5",)),
        (["--task_name", "rte", "--reg", "rat"], 24, 2e-5, ("epsilon=0.1,", "scope='table'")),
        (["--task_name", "rte", "--reg", "rdrop(alpha=3.0)"], 24, 2e-5, ("rdrop(alpha=3.0",)),
    ],
)
def test_the_paper_s_settings_and_flags_that_win(words, batch, rate, regularizer):
    flags = read_flags(given_flags([*words, "--preset", "paper"], "x"))
    said = apply_paper(flags, find(flags.data.task_name))
    assert flags.training.per_device_train_batch_size == batch
    assert flags.training.learning_rate == rate
    assert flags.model.dropout == 0.1
    built = repr(flags.training.regularizer())
    assert all(part in built for part in regularizer)
    assert f"learning_rate={rate}" in said or "yours: --learning_rate" in said


def test_the_paper_s_batch_size_must_come_out_even():
    flags = read_flags(
        given_flags(["--task_name", "rte", "--gradient_accumulation_steps", "5", "--preset", "paper"], "x")
    )
    with pytest.raises(ValueError, match="batch size 24 of rte cannot be shared out over 1 processes x 5"):
        apply_paper(flags, find("rte"))


def test_dropout_is_set_under_every_name():
    config = generated_config(generated_tokenizer())
    assert set(set_dropout(config, 0.3)) == {"hidden_dropout_prob", "attention_probs_dropout_prob"}
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.3


def test_lora_saves_an_adapter_that_peft_loads(common, tmp_path, model):
    peft = pytest.importorskip("peft")
    words = ["--lora_r", "2", "--lora_target_modules", "query,value", "--reg", "rat(epsilon=0.1)"]
    glue.run(["--task_name", "rte", "--do_train", "--do_eval", *words, *common, "--learning_rate", "0.1"])
    out = tmp_path / "out"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir(out))
    assert not (out / "model.safetensors").exists()
    weights = load_file(out / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.abs().sum() > 0 for name, tensor in weights.items())
    assert all("lora_" in name or "classifier" in name for name in weights)
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(out)
    assert loaded.peft_config["default"].base_model_name_or_path == model
    assert "rat(epsilon=0.1" in (out / "README.md").read_text()


def test_what_is_predicted_and_saved_is_the_average(common, tmp_path, data):
    words = ["--task_name", "rte", "--do_train", "--do_eval", "--do_predict", "--average", "ema(0.6)", *common]
    words += ["--learning_rate", "0.05", "--save_steps", "1", "--max_steps", "3", "--optim", "sgd"]
    glue.run(words)
    out = tmp_path / "out"
    saved = load_file(out / "model.safetensors")
    raw = [load_file(out / f"checkpoint-{step}" / "raw_model.safetensors") for step in (1, 2, 3)]
    last = load_file(out / "checkpoint-2" / "model.safetensors")
    for name, value in saved.items():
        torch.testing.assert_close(value, 0.6 * last[name] + 0.4 * raw[2][name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(saved["classifier.weight"], raw[2]["classifier.weight"])
    assert (
        "The weights are an average: `ema(0.6)` of those after 3 optimizer steps." in (out / "README.md").read_text()
    )
    predicted = (out / "predict_results_rte.txt").read_text()
    again = [*words[: words.index("--output_dir")], "--output_dir", str(tmp_path / "again"), "--report_to", "none"]
    again[again.index("--model_name_or_path") + 1] = str(out)
    glue.run([word for word in again if word not in ("--do_train", "--average", "ema(0.6)")])
    assert (tmp_path / "again" / "predict_results_rte.txt").read_text() == predicted


def test_the_last_layer_is_new_when_training_begins(common, tmp_path, model):
    glue.run(["--task_name", "rte", "--do_train", "--reinit_layers", "1", "--learning_rate", "0", *common])
    before, after = load_file(f"{model}/model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {
        name
        for name in before
        if name.endswith("weight") and (".layer.0." in name or "pooler" in name) and "LayerNorm" not in name
    }


def test_resuming_continues_exactly(common, tmp_path):
    """Six steps at once, and six steps of which a second run makes the last four, end in the same weights."""
    words = ["--task_name", "rte", "--do_train", "--reg", "rat(epsilon=0.1)", "--save_steps", "2", *common]
    words += ["--max_steps", "6", "--per_device_train_batch_size", "4"]
    glue.run(words)
    whole = load_file(tmp_path / "out" / "model.safetensors")
    (tmp_path / "out" / "model.safetensors").unlink()
    glue.run([*words, "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-2")])
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_half_written_checkpoint_is_named_and_the_one_before_works(common, tmp_path, capsys):
    words = ["--task_name", "rte", "--do_train", "--save_steps", "1", *common]
    glue.run(words)
    path = tmp_path / "out" / "checkpoint-2" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-50])
    (tmp_path / "out" / "checkpoint-1" / "training_args.bin").write_bytes(b"never read")
    line = _error([*words, "--resume_from_checkpoint"], capsys)
    offer = f"--resume_from_checkpoint {tmp_path / 'out' / 'checkpoint-1'}"
    assert "checkpoint-2: optimizer.pt is cut short" in line
    assert line.endswith(offer)
    assert glue.main([*words, *offer.split()]) == 0


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--task_name", "rta", "--do_eval"], ["--task_name 'rta'", "rte"]),
        (["--task_name", "rte"], ["--do_train, --do_eval or --do_predict"]),
        (["--do_eval"], ["--task_name, --dataset_name or --train_file"]),
        (["--task_name", "rte", "--do_eval", "--lerning_rate", "1"], ["'--lerning_rate'", "--learning_rate"]),
        (["--task_name", "rte", "--do_eval", "--learning_rate", "fast"], ["--learning_rate", "'fast'"]),
        (["--task_name", "rte", "--do_eval", "--max_eval_samples", "0"], ["--max_eval_samples 0"]),
        (["--task_name", "rte", "--do_eval", "--reg", "ratt"], ["ratt", "rat"]),
        (["--task_name", "rte", "--do_eval", "--reg", "rat(epsilon=-1)"], ["epsilon", "-1"]),
        (["--task_name", "rte", "--do_eval", "--preset", "papier"], ["--preset", "'papier'"]),
        (["--task_name", "ax", "--do_train"], ["--task_name 'ax'", "no training split"]),
        (["--task_name", "ax", "--do_predict", "--preset", "paper"], ["--preset paper", "Table 7"]),
        (["--task_name", "rte", "--do_eval", "--submission_dir", "s"], ["--submission_dir 's'", "--do_predict"]),
        (["--task_name", "rte", "--do_eval", "--text_column_names", "one,two"], ["no column 'one'", "sentence1"]),
        (["--task_name", "rte", "--do_eval", "--config_name", "/none/such"], ["--config_name '/none/such'"]),
        (["--task_name", "mnli", "--do_eval"], ["--model_name_or_path", "--ignore_mismatched_sizes"]),
        (["--task_name", "rte", "--do_eval", "--lora_r", "2", "--lora_target_modules", "nothing"], ["'nothing'"]),
        (["--task_name", "rte", "--do_train", "--average", "ema(2)"], ["--average 'ema(2)' must be", "swa(0.5)"]),
        (["--task_name", "rte", "--do_train", "--reinit_layers", "3"], ["--reinit_layers 3 must be 1 to 1"]),
        (["--task_name", "rte", "--do_eval", "--reinit_layers", "1"], ["--reinit_layers 1 needs --do_train"]),
        (
            ["--task_name", "rte", "--do_train", "--reinit_layers", "1", "--lora_r", "2"],
            ["--reinit_layers 1: --lora_r"],
        ),
        (["--task_name", "rte", "--do_train", "--layer_decay", "2"], ["--layer_decay 2", "above 0 and at most 1"]),
        (["--train_file", "none.csv", "--do_eval"], ["--train_file 'none.csv'", "no such file"]),
        (["--task_name", "rte", "--do_eval", "--lora_alpha", "8"], ["--lora_alpha 8", "--lora_r"]),
        (
            ["--task_name", "rte", "--do_eval", "--unlabeled_file", "u.csv"],
            ["--unlabeled_file 'u.csv'", "run_textcls"],
        ),
    ],
)
def test_bad_input_is_answered_in_one_line(words, parts, common, capsys):
    line = _error([*words, *common], capsys)
    for part in parts:
        assert part in line


def test_an_output_folder_that_is_not_empty(common, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    line = _error(["--task_name", "rte", "--do_train", *common], capsys)
    assert f"--output_dir {str(tmp_path / 'out')!r} is not empty" in line
    assert (tmp_path / "out" / "precious").read_text() == "x"


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"sentence1": ["a"], "sentence2": ["b"], "label": [7]}, ["row 0 has the label 7", "[0, 1]", "split train"]),
        ({"sentence1": [], "sentence2": [], "label": []}, ["train.parquet", "the file is empty"]),
        ({"sentence1": ["a"], "label": [1]}, ["no column 'sentence2'"]),
    ],
)
def test_bad_data_is_answered_in_one_line(columns, parts, common, tmp_path, capsys):
    (tmp_path / "glue" / "rte").mkdir(parents=True)
    Dataset.from_dict(columns).to_parquet(tmp_path / "glue" / "rte" / "train.parquet")
    line = _error(["--task_name", "rte", "--do_train", *common, "--data_dir", str(tmp_path)], capsys)
    for part in parts:
        assert part in line


def test_the_environment_names_the_data_too(model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_RAT_DATA", data)
    words = ["--task_name", "rte", "--do_eval", "--model_name_or_path", model, "--output_dir", str(tmp_path / "out")]
    assert glue.run(words)["eval_samples"] == 12


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    assert reported(interrupted, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_command_line_lists_its_commands(capsys):
    assert cli.main(["--help"]) == 0
    assert "glue" in capsys.readouterr().out
    assert cli.main(["check-submission", "--help"]) == 0
    assert "FOLDER_OR_ZIP" in capsys.readouterr().out
    assert cli.main(["gleu"]) == 2
    assert "did you mean glue?" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_make_the_model_of_one(tmp_path, data, model):
    """2 processes x 6 of the twelve rows train what 1 process x 12 does, and predict each test row once, in order."""
    weights, script = [], ROOT / "run_glue.py"
    for processes, size in ((1, 12), (2, 6)):
        out = tmp_path / f"{processes}"
        words = ["--task_name", "rte", "--data_dir", data, "--model_name_or_path", model, "--use_cpu"]
        words += ["--do_train", "--do_eval", "--do_predict", "--output_dir", str(out), "--max_steps", "3"]
        words += ["--per_device_train_batch_size", str(size), "--dropout", "0", "--reg", "fgm(epsilon=0.1)"]
        words += ["--optim", "sgd", "--learning_rate", "1", "--submission_dir", str(out / "submission")]
        if processes == 1:
            printed = launches.fork(script, *words)
        else:
            printed = launches.run([*launches.TORCHRUN, "--nproc_per_node", "2", str(script), *words])
        assert printed.count("Regularizer fgm") == 1
        assert f"on cpu x {processes}" in printed
        weights.append(load_file(out / "model.safetensors"))
        assert (out / "submission" / "RTE.tsv").read_text().count("\n") == 13
    for name, one in weights[0].items():
        torch.testing.assert_close(weights[1][name], one, rtol=1e-4, atol=1e-5)

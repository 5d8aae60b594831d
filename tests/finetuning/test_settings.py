"""Settings of the Trainer that cannot work are answered in one line, before anything is trained."""

import json
import os
import sys

import launches
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForSequenceClassification

from hf_rat.cli import glue, textcls
from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer
from hf_rat.finetuning.whole_splits import WholeSplits


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny model, and files of 24, 8, 4 and 1 rows, and of numbers to regress."""
    folder, tokenizer = tmp_path_factory.mktemp("settings"), generated_tokenizer()
    torch.manual_seed(0)
    BertForSequenceClassification(generated_config(tokenizer, hidden_size=16, layers=1)).save_pretrained(
        folder / "model"
    )
    tokenizer.save_pretrained(folder / "model")
    rows = generated_pairs(train=24)["train"]
    texts = {name: rows[name][:] for name in ("sentence1", "sentence2")}
    for name, count, label in (
        *(("train", 24, 1), ("dev", 8, 1), ("four", 4, 1), ("one", 1, 1)),
        *(("numbers", 24, 0.3), ("numbers_dev", 8, 0.3)),
    ):
        columns = {key: values[:count] for key, values in texts.items()}
        labels = [index % 2 if label == 1 else index * label for index in range(count)]
        Dataset.from_dict({**columns, "label": labels}).to_csv(folder / f"{name}.csv")
    return folder


@pytest.fixture
def commands(data, tmp_path, monkeypatch):
    """kind -> command and the flags of a short run of it."""
    monkeypatch.chdir(tmp_path)
    # Some flags act on the whole process, through its environment.
    before = dict(os.environ)
    files = ["--train_file", str(data / "train.csv"), "--validation_file", str(data / "dev.csv")]
    numbers = ["--train_file", str(data / "numbers.csv"), "--validation_file", str(data / "numbers_dev.csv")]
    model = ["--model_name_or_path", str(data / "model"), "--do_train", "--do_eval"]
    yield {
        "pairs": (glue, [*model, *files]),
        "numbers": (glue, [*model, *numbers, "--ignore_mismatched_sizes"]),
        "textcnn": (textcls, ["--do_train", "--do_eval", *files]),
        "four": (glue, [*model, "--train_file", str(data / "four.csv")]),
        "one": (glue, [*model, "--train_file", str(data / "one.csv")]),
        "example": (glue, ["--max_train_samples", "16", "--max_eval_samples", "8"]),
    }
    os.environ.clear()
    os.environ.update(before)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


EVERY_STEP = "--eval_strategy steps --eval_steps 1 --save_strategy steps --save_steps 1"
REFUSED = [
    (
        "pairs",
        f"--load_best_model_at_end --metric_for_best_model f1 {EVERY_STEP}",
        "scores of this run are loss, accuracy",
    ),
    ("pairs", f"--load_best_model_at_end --metric_for_best_model eval_f1 {EVERY_STEP}", "--metric_for_best_model"),
    ("pairs", "--metric_for_best_model accuracy", "--load_best_model_at_end"),
    (
        "pairs",
        f"--prediction_loss_only --load_best_model_at_end --metric_for_best_model accuracy {EVERY_STEP}",
        "are loss",
    ),
    ("pairs", "--load_best_model_at_end", "save and eval strategy"),
    ("pairs", "--save_strategy best --eval_strategy steps --eval_steps 1", "--metric_for_best_model"),
    ("pairs", "--prediction_loss_only --do_predict", "--prediction_loss_only"),
    ("numbers", "--label_smoothing_factor 0.1", "--label_smoothing_factor 0.1"),
    ("pairs", "--label_smoothing_factor 1.5", "--label_smoothing_factor 1.5"),
    ("textcnn", "--gradient_checkpointing", "TextCNNForSequenceClassification does not support"),
    (
        "pairs",
        "--dataloader_drop_last --per_device_train_batch_size 64",
        "24 training rows do not fill one batch of 64",
    ),
    ("one", "--validation_from_train 0.5", "the only row of the training split has the label 0"),
    ("four", "--validation_from_train 0.9", "4 training rows leaves none"),
    ("pairs", "--lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr: One of min_lr"),
    ("pairs", "--lr_scheduler_type warmup_stable_decay", "--lr_scheduler_type warmup_stable_decay"),
    ("pairs", "--push_to_hub", "--push_to_hub: HF_HUB_OFFLINE"),
    ("pairs", "--optim galore_adamw", "--optim galore_adamw"),
    ("pairs", "--learning_rate nan", "--learning_rate nan"),
    ("pairs", "--report_to nonesuch", "--report_to nonesuch"),
    ("pairs", "--deepspeed nonesuch.json", "--deepspeed nonesuch.json"),
    ("pairs", "--fsdp full_shard", "fsdp"),
    ("pairs", "--accelerator_config nonesuch.json", "--accelerator_config nonesuch.json"),
    ("pairs", "--torch_compile_backend nonesuch", "--torch_compile_backend nonesuch"),
    (
        "pairs",
        '--gradient_checkpointing --gradient_checkpointing_kwargs {"nonesuch":1}',
        "--gradient_checkpointing_kwargs",
    ),
    ("pairs", "--per_device_eval_batch_size 0", "--per_device_eval_batch_size 0"),
    ("pairs", "--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0"),
    ("pairs", "--max_steps -1 --num_train_epochs 0", "--num_train_epochs 0"),
    ("pairs", "--seed -1", "--seed -1"),
    ("pairs", "--label_names answers", "--label_names answers"),
    ("pairs", "--output_dir {data}/train.csv", "--output_dir"),
    ("pairs", "--output_dir {data}/train.csv/below", "--output_dir"),
    ("pairs", "--output_dir new --resume_from_checkpoint nonesuch", "--resume_from_checkpoint nonesuch"),
    ("example", "--lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr"),
]


@pytest.mark.parametrize(("kind", "words", "said"), REFUSED, ids=[words for _, words, _ in REFUSED])
def test_a_setting_that_cannot_work_is_one_line_and_leaves_no_folder(
    kind, words, said, commands, data, tmp_path, capsys
):
    command, common = commands[kind]
    words = words.replace("{data}", str(data)).split()
    status = command.main([*common, "--max_steps", "1", "--disable_tqdm", "true", *words])
    captured = capsys.readouterr()
    assert status == 2
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert said in lines[-1]
    assert "Traceback" not in captured.err
    assert "'loss'" not in captured.out, "it had begun to train"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_more_tokens_than_positions_are_refused_with_the_number_that_fits(kind, tmp_path, capsys):
    """The tokenizer has no limit of its own. RoBERTa's positions begin behind its padding: a table of 20 reads 18."""
    tokenizer = generated_tokenizer()
    tokenizer.model_max_length = int(1e30)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": 20, "num_labels": 2}
    config = AutoConfig.for_model(kind, **sizes, **({"pad_token_id": 1} if kind == "roberta" else {}))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = ["the soup was awful " * 10, "the room was vile"]
    Dataset.from_dict({"text": texts, "label": [0, 1]}).to_csv(tmp_path / "train.csv", index=False)
    words = [
        "--model_name_or_path",
        str(tmp_path / "model"),
        "--train_file",
        str(tmp_path / "train.csv"),
        "--do_train",
    ]
    words += ["--max_steps", "1", "--report_to", "none"]
    fits = {"bert": 20, "roberta": 18}[kind]

    assert glue.main([*words, "--output_dir", str(tmp_path / "no")]) == 2
    assert f"give --max_seq_length {fits}" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "no").exists()
    assert glue.main([*words, "--output_dir", str(tmp_path / "yes"), "--max_seq_length", str(fits)]) == 0


def test_an_interruption_says_what_is_kept_and_those_words_go_on(commands, tmp_path, monkeypatch, capsys):
    command, common = commands["pairs"]
    common = [*common, "--max_steps", "4", "--save_steps", "2", "--disable_tqdm", "true", "--reg", "rdrop"]
    step, done = WholeSplits.training_step, []

    def interrupted(self, *args, **kwargs):
        done.append(len(done))
        if len(done) == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(WholeSplits, "training_step", interrupted)
    assert command.main(common) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    words = said.partition("same command with ")[2].split()
    assert words[0] == "--output_dir"
    assert words[2:] == ["--resume_from_checkpoint", "runs/glue-001/checkpoint-2"]
    assert command.main([*common, *words]) == 0
    assert command.main([*common, "--output_dir", "whole"]) == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / words[1], tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_interruption_before_a_checkpoint_leaves_no_empty_folder(commands, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(WholeSplits, "training_step", interrupted)
    command, common = commands["pairs"]
    assert command.main([*common, "--max_steps", "1"]) == 130
    assert "no checkpoint had been written" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_every_row_is_scored_also_with_drop_last_and_batch_by_batch(commands, capsys):
    """Eight rows in batches of three."""
    command, common = commands["pairs"]
    scores = [
        command.run([*common, "--max_steps", "1", "--per_device_eval_batch_size", "3", *more])
        for more in ([], ["--dataloader_drop_last"], ["--batch_eval_metrics"])
    ]
    assert len({(one["eval_accuracy"], one["eval_loss"]) for one in scores}) == 1


def test_the_best_mean_squared_error_is_the_lowest(commands, tmp_path):
    command, common = commands["numbers"]
    more = f"--load_best_model_at_end --metric_for_best_model mse --max_steps 3 --learning_rate 1e-2 {EVERY_STEP}"
    command.run([*common, *more.split(), "--output_dir", "out"])
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["best_metric"] == min(log["eval_mse"] for log in state["log_history"] if "eval_mse" in log)


@pytest.mark.slow
def test_answers_are_written_where_the_terminal_knows_ascii_only(commands, data, tmp_path):
    rows = ["sentence1,sentence2,label", *(f"text {n},text {n},{('é', '好')[n % 2]}" for n in range(8))]
    (tmp_path / "rows.csv").write_text("\n".join(rows), encoding="utf-8")
    files = [f"--{split}_file={tmp_path}/rows.csv" for split in ("train", "test")]
    words = [*files, "--model_name_or_path", str(data / "model"), "--do_train", "--do_predict", "--max_steps", "1"]
    launches.run(
        [sys.executable, "-m", "hf_rat.cli.main", "glue", *words, "--output_dir", str(tmp_path / "out")],
        **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    answers = (tmp_path / "out" / "predict_results.txt").read_text(encoding="utf-8").splitlines()
    assert len(answers) == 9
    assert {line.split("\t")[1] for line in answers[1:]} <= {"é", "好"}

"""Settings of the Trainer that cannot work are answered in one line, before anything is trained."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from transformers import BertForSequenceClassification

from hf_rat.commands import glue, textcls
from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer


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
    ("one", "--validation_from_train 0.5", "1 training row leaves none"),
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

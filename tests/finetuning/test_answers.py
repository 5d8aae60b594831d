"""What a model answered to each row lies beside the scores: checked by asking the saved model again, row by row."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from hf_rat.cli import glue, textcls
from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer

ROWS = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of unequal length; a model that numbers the labels the other way round, and one of a number."""
    folder, tokenizer = tmp_path_factory.mktemp("answers"), generated_tokenizer()
    rows = generated_pairs(train=ROWS)["train"]
    texts = {name: rows[name][:] for name in ("sentence1", "sentence2")}
    for name, labels in (("classes", [i % 2 for i in range(ROWS)]), ("numbers", [i * 0.3 for i in range(ROWS)])):
        Dataset.from_dict({**texts, "label": labels}).to_csv(folder / f"{name}.csv")
        torch.manual_seed(0)
        config = generated_config(tokenizer, hidden_size=16, layers=1)
        config.initializer_range = 1.0  # so that the answers differ
        config.num_labels = 1 if name == "numbers" else 2
        if name == "classes":
            config.id2label, config.label2id = {0: "1", 1: "0"}, {"1": 0, "0": 1}
        BertForSequenceClassification(config).save_pretrained(folder / f"model_{name}")
        tokenizer.save_pretrained(folder / f"model_{name}")
    (folder / "ag_news").mkdir()
    lines = {"text": [f"w{i} " * (1 + i % 4) for i in range(12)], "label": [i % 4 for i in range(12)]}
    for split in ("train", "test"):
        Dataset.from_dict(lines).to_parquet(folder / "ag_news" / f"{split}.parquet")
    return folder, texts


def run(data, tmp_path, kind, *more):
    folder, _ = data
    files = [f"--{split}_file={folder}/{kind}.csv" for split in ("train", "validation")]
    words = ["--model_name_or_path", f"{folder}/model_{kind}", "--do_train", "--do_eval", "--max_steps", "1"]
    words += ["--per_device_eval_batch_size", "3", "--output_dir", str(tmp_path / "out"), "--learning_rate", "1e-3"]
    return glue.run([*files, *words, *more])


def asked_again(data, tmp_path):
    """The logits of the saved model, one row at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    pairs = zip(*data[1].values(), strict=True)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*pair, return_tensors="pt")).logits for pair in pairs]).numpy()


@pytest.mark.parametrize(
    "more",
    [(), ("--batch_eval_metrics",), ("--train_sampling_strategy", "group_by_length"), ("--dataloader_drop_last",)],
    ids=" ".join,
)
def test_classes(data, tmp_path, more):
    scores = run(data, tmp_path, "classes", *more)
    with np.load(tmp_path / "out" / "eval_predictions.npz") as file:
        answers = dict(file)
    assert answers["logits"].shape == (ROWS, 2)
    assert answers["logits"].dtype == np.float32
    np.testing.assert_allclose(answers["logits"], asked_again(data, tmp_path), atol=1e-5)
    assert answers["expected"].tolist() == [i % 2 for i in range(ROWS)], "in the order of the file"
    # The model's class 0 is the data set's 1.
    assert answers["predicted"].tolist() == [1 - best for best in answers["logits"].argmax(1)]
    assert len(set(answers["predicted"].tolist())) == 2, "the test could not tell the numberings apart"
    assert (answers["predicted"] == answers["expected"]).mean() == pytest.approx(scores["eval_accuracy"])


def test_numbers(data, tmp_path):
    run(data, tmp_path, "numbers")
    with np.load(tmp_path / "out" / "eval_predictions.npz") as file:
        answers = dict(file)
    assert answers["logits"].shape == answers["predicted"].shape == answers["expected"].shape == (ROWS,)
    np.testing.assert_allclose(answers["predicted"], asked_again(data, tmp_path)[:, 0], atol=1e-5)
    np.testing.assert_allclose(answers["expected"], [i * 0.3 for i in range(ROWS)], rtol=1e-6)


def test_nothing_where_only_the_loss_is_asked_for(data, tmp_path):
    run(data, tmp_path, "classes", "--prediction_loss_only")
    assert not list((tmp_path / "out").glob("*.npz"))


def test_a_labelled_test_split(data, tmp_path):
    words = ["--dataset_name", "ag_news", "--data_dir", str(data[0]), "--do_train", "--do_predict", "--max_steps", "1"]
    words += ["--embedding_size", "8", "--hidden_size", "8", "--min_count", "1", "--output_dir", str(tmp_path / "out")]
    scores = textcls.run(words)
    with np.load(tmp_path / "out" / "test_predictions.npz") as answers:
        assert answers["logits"].shape == (12, 4)
        assert (answers["predicted"] == answers["expected"]).mean() == pytest.approx(scores["test_accuracy"])
    assert not (tmp_path / "out" / "eval_predictions.npz").exists()


def test_several_splits(tmp_path):
    scores = glue.run(
        ["--max_steps", "1", "--alone", "--max_eval_samples", "9", "--output_dir", str(tmp_path / "out")]
    )
    for name, rows in (("", 9), ("_train", 500)):
        with np.load(tmp_path / "out" / f"eval_predictions{name}.npz") as answers:
            assert answers["logits"].shape == (rows, 2)
            right = (answers["predicted"] == answers["expected"]).mean()
            assert right == pytest.approx(scores[f"eval_accuracy{name}"])

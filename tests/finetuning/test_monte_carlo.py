"""`--mc_samples`: predictions averaged over passes with dropout, compared with passes made by hand."""

import launches
import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import softmax
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from hf_rat.cli import glue, lm, ner, textcls
from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer
from hf_rat.data.predictions import read_predictions, write_predictions
from hf_rat.data.tasks import find
from hf_rat.finetuning.monte_carlo import average_passes

ROWS, PASSES = 12, 7


def test_the_mean_and_the_spread_of_classes():
    torch.manual_seed(0)
    logits = [3 * torch.randn(5, 4) for _ in range(PASSES)]
    mean, spread = average_passes(logits, regression=False)
    probabilities = softmax(torch.stack(logits).double().numpy(), axis=-1)
    np.testing.assert_allclose(mean.exp(), probabilities.mean(0), rtol=1e-5)
    best = probabilities.mean(0).argmax(-1)
    by_hand = [np.std([p[row, best[row]] for p in probabilities], ddof=1) for row in range(5)]
    np.testing.assert_allclose(spread, by_hand, rtol=1e-4)


@pytest.mark.parametrize("shape", [(5, 1), (5,)])
def test_the_mean_and_the_spread_of_values(shape):
    torch.manual_seed(0)
    values = [torch.randn(shape) for _ in range(PASSES)]
    mean, spread = average_passes(values, regression=True)
    rows = torch.stack(values).reshape(PASSES, 5).numpy()
    np.testing.assert_allclose(mean, rows.mean(0)[:, None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spread, rows.std(0, ddof=1), rtol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of two classes and one of a number, with much dropout; one without; rows as of RTE and STS-B."""
    folder, tokenizer = tmp_path_factory.mktemp("mc"), generated_tokenizer()
    rows = generated_pairs(train=ROWS)["train"]
    texts = [rows["sentence1"][:], rows["sentence2"][:]]
    for name, outputs, rate in (("rte", 2, 0.4), ("stsb", 1, 0.4), ("none", 2, 0.0)):
        torch.manual_seed(0)
        config = generated_config(tokenizer, hidden_size=16, layers=1, dropout=rate)
        config.initializer_range, config.num_labels = 0.5, outputs
        BertForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        if rate:
            task = find(name)
            labels = {"label": [-1.0 if task.regression else -1] * ROWS, "idx": list(range(ROWS))}
            (folder / task.folder).mkdir(parents=True)
            columns = dict(zip(task.text_columns, texts, strict=True))
            Dataset.from_dict({**columns, **labels}).to_parquet(folder / task.folder / "test.parquet")
    return folder


def words_of(folder, out, task, *more):
    words = ["--task_name", task, "--model_name_or_path", str(folder / task), "--data_dir", str(folder)]
    words += ["--do_predict", "--output_dir", str(out), "--seed", "3", "--report_to", "none", *more]
    return [*words, "--disable_tqdm", "true", "--per_device_eval_batch_size", "5"]


def predicted(folder, out, task, *more):
    glue.run(words_of(folder, out, task, *more))
    return (out / f"predict_results_{task}.txt").read_text(encoding="utf-8")


def passes_by_hand(folder, task, numbers=range(ROWS), seed=3):
    """(passes, rows, outputs): the saved model in training mode, batch after batch, from the run's seed."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / task).train()
    tokenizer = AutoTokenizer.from_pretrained(folder / task)
    rows = Dataset.from_parquet(str(folder / find(task).folder / "test.parquet")).select(numbers)
    pairs = list(zip(*(rows[name][:] for name in find(task).text_columns), strict=True))
    torch.manual_seed(seed)
    found = []
    with torch.no_grad():
        for batch in DataLoader(pairs, batch_size=5, collate_fn=list):
            encoded = tokenizer(*map(list, zip(*batch, strict=True)), padding=True, return_tensors="pt")
            found.append(torch.stack([model(**encoded).logits for _ in range(PASSES)]))
    return torch.cat(found, dim=1).double().numpy()


def test_predictions_of_classes(folder, tmp_path):
    text = predicted(folder, tmp_path / "out", "rte", "--mc_samples", str(PASSES), "--submission_dir", str(tmp_path))
    lines = [line.split("\t") for line in text.splitlines()]
    assert lines[0] == ["index", "prediction", "spread"]
    probabilities = softmax(passes_by_hand(folder, "rte"), axis=-1)
    best = probabilities.mean(0).argmax(-1)
    assert [line[1] for line in lines[1:]] == [find("rte").labels[number] for number in best]
    by_hand = probabilities[:, range(ROWS), best].std(0, ddof=1)
    assert by_hand.min() > 1e-3
    np.testing.assert_allclose([float(line[2]) for line in lines[1:]], by_hand, rtol=1e-4)
    # What is submitted, and read again, has no third column.
    assert read_predictions(tmp_path / "out" / "predict_results_rte.txt", find("rte")) == best.tolist()
    submitted = (tmp_path / "RTE.tsv").read_text(encoding="utf-8").splitlines()
    assert submitted == ["index\tprediction", *("\t".join(line[:2]) for line in lines[1:])]


def test_two_processes_share_the_rows_and_draw_masks_of_their_own(folder, tmp_path):
    words = words_of(folder, tmp_path, "rte", "--mc_samples", str(PASSES), "--use_cpu")
    launches.fork(launches.ROOT / "run_glue.py", *words, processes=2)
    lines = [line.split("\t") for line in (tmp_path / "predict_results_rte.txt").read_text().splitlines()]
    # Rows 0 to 4 and 10 and 11 are the first process's, filled up from the start; 5 to 9 the other's, then fillings.
    first = passes_by_hand(folder, "rte", [0, 1, 2, 3, 4, 10, 11, 0, 1, 2])
    second = passes_by_hand(folder, "rte", [5, 6, 7, 8, 9], seed=4)
    probabilities = softmax(np.concatenate([first[:, :5], second, first[:, 5:7]], axis=1), axis=-1)
    best = probabilities.mean(0).argmax(-1)
    assert [line[1] for line in lines[1:]] == [find("rte").labels[number] for number in best]
    by_hand = probabilities[:, range(ROWS), best].std(0, ddof=1)
    np.testing.assert_allclose([float(line[2]) for line in lines[1:]], by_hand, rtol=1e-4)


def test_predictions_of_numbers(folder, tmp_path):
    text = predicted(folder, tmp_path, "stsb", "--mc_samples", str(PASSES))
    found = np.array([[float(x) for x in line.split("\t")[1:]] for line in text.splitlines()[1:]])
    values = passes_by_hand(folder, "stsb")[..., 0]
    np.testing.assert_allclose(found[:, 0], values.mean(0), atol=6e-4)  # three decimals
    np.testing.assert_allclose(found[:, 1], values.std(0, ddof=1), rtol=1e-4)


def test_without_the_flag_nothing_drops_out(folder, tmp_path):
    text = predicted(folder, tmp_path, "rte")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "rte").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "rte")
    rows = Dataset.from_parquet(str(folder / find("rte").folder / "test.parquet"))
    texts = [rows[name][:] for name in find("rte").text_columns]
    with torch.no_grad():
        best = model(**tokenizer(*texts, padding=True, return_tensors="pt")).logits.argmax(-1)
    names = [find("rte").labels[number] for number in best]
    assert text == "index\tprediction\n" + "".join(f"{index}\t{name}\n" for index, name in enumerate(names))


def test_training_is_the_same_with_it(folder, tmp_path):
    rows = generated_pairs(train=ROWS)["train"].rename_column("label", "labels_")
    Dataset.from_dict({**rows[:], "label": [0, 1] * (ROWS // 2)}).to_csv(tmp_path / "rows.csv")
    weights = []
    for more in ([], ["--mc_samples", "3"]):
        out = tmp_path / str(len(weights))
        files = [f"--{split}_file={tmp_path}/rows.csv" for split in ("train", "test")]
        words = ["--text_column_names", "sentence1,sentence2", "--model_name_or_path", str(folder / "rte"), *more]
        words += ["--do_train", "--do_predict", "--max_steps", "3", "--output_dir", str(out), "--report_to", "none"]
        scores = glue.run([*files, *words, "--disable_tqdm", "true"])
        weights.append(BertForSequenceClassification.from_pretrained(out).state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    with np.load(tmp_path / "1" / "test_predictions.npz") as file:
        assert (file["predicted"] == file["expected"]).mean() == pytest.approx(scores["test_accuracy"])
        np.testing.assert_allclose(np.exp(file["logits"]).sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (glue, ["--task_name", "rte", "--do_predict", "--mc_samples", "1"], "--mc_samples 1: at least 2"),
        (glue, ["--mc_samples", "4"], "--mc_samples needs a data set"),
        (textcls, ["--mc_samples", "4"], "--mc_samples needs a data set"),
        (ner, ["--train_file", "x.csv", "--do_predict", "--mc_samples", "4"], "not for hf-rat ner"),
        (lm, ["--train_file", "x.txt", "--do_predict", "--mc_samples", "4"], "--mc_samples"),
    ],
)
def test_bad_flags(command, words, said, capsys):
    assert command.main([*words, "--output_dir", "nowhere"]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_model_without_dropout_is_refused_before_anything_is_trained(folder, tmp_path, capsys):
    words = ["--task_name", "rte", "--model_name_or_path", str(folder / "none"), "--data_dir", str(folder)]
    words += ["--do_predict", "--mc_samples", "4", "--output_dir", str(tmp_path), "--report_to", "none"]
    assert glue.main(words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: --mc_samples 4: BertForSequenceClassification has no dropout")
    rows = generated_pairs(train=ROWS)["train"]
    rows.to_csv(tmp_path / "rows.csv")
    words = [
        f"--train_file={tmp_path}/rows.csv",
        "--do_train",
        "--mc_samples",
        "4",
        "--output_dir",
        str(tmp_path / "b"),
    ]
    assert glue.main([*words, "--model_name_or_path", str(folder / "rte")]) == 2
    assert "it needs --do_predict" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_damaged_third_column_is_named(tmp_path):
    path = tmp_path / "predict_results_rte.txt"
    write_predictions(path, [0, 1], find("rte").labels, [0.25, 0.5])
    assert read_predictions(path, find("rte")) == [0, 1]
    path.write_text(path.read_text().replace("0.5", "x"))
    with pytest.raises(ValueError, match=r"line 3: 'x' is not a number"):
        read_predictions(path, find("rte"))

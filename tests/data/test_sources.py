"""The scripts on files of one's own: which columns are taken, what is told, and what is refused in one line."""

import json
import random

import pandas as pd
import pytest
from datasets import Dataset
from transformers import AutoTokenizer, pipeline

from hf_rat.cli import main as cli
from hf_rat.cli import textcls
from hf_rat.data.text_columns import text_columns_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def run(tmp_path):
    """Train for two steps on files: a frame or the text of each split."""

    def go(*words, run=textcls.run, ending="csv", **splits):
        files = []
        for split, content in splits.items():
            path = tmp_path / f"{split}.{ending}"
            if isinstance(content, pd.DataFrame):
                content.to_csv(path, index=False)
            else:
                path.write_text(content, encoding="utf-8")
            files.append(f"--{split}_file={path}")
        where = ["--output_dir", str(tmp_path / "out"), "--disable_tqdm", "True", "--use_cpu", "--max_steps", "2"]
        small = ["--embedding_size", "8", "--hidden_size", "8", "--min_count", "1"]
        return run([*files, "--do_train", *where, *small, *words])

    return go


def error(capsys, go, *words, **splits):
    capsys.readouterr()
    assert go(*words, run=lambda argv: cli.main(["textcls", *argv]), **splits) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def tweets(rows=40):
    """The columns of Kaggle's airline tweets; the reason is there for negative ones only, so it tells the label."""
    labels = ["negative", "neutral", "positive", "negative"]
    return pd.DataFrame(
        {
            "tweet_id": [570306133677760513 + n for n in range(rows)],
            "airline_sentiment": [labels[n % 4] for n in range(rows)],
            "airline_sentiment_confidence": [1.0 if n % 3 else 0.3486 for n in range(rows)],
            "negativereason": ["Bad Flight" if labels[n % 4] == "negative" else "" for n in range(rows)],
            "negativereason_confidence": ["0.7033" if labels[n % 4] == "negative" else "" for n in range(rows)],
            "airline": ["Virgin America"] * rows,
            "name": [f"user_{n}" for n in range(rows)],
            "text": [f'@air said "{n}",\nthen left' for n in range(rows)],
            "tweet_created": ["2015-02-24 11:35:52 -0800"] * rows,
        }
    )


def test_the_text_is_found_by_its_name_and_told(run, tmp_path, capsys):
    run("--label_column_name", "airline_sentiment", "--do_predict", train=tweets(), test=tweets(8))
    told = capsys.readouterr().out
    assert "the text is 'text', the label is 'airline_sentiment', 3 classes" in told
    assert f"train ({tmp_path / 'train.csv'}): 40 rows; negative: 20, neutral: 10, positive: 10" in told
    assert f"test ({tmp_path / 'test.csv'}): 8 rows; negative: 4, neutral: 2, positive: 2" in told
    words = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert {"said", "then", "left"} <= words.keys()
    assert not {"flight", "virgin", "0.7033", "user_0", "2015"} & words.keys()


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        ({"id": "u", "label": "l", "text": "t"}, ("text",)),
        ({"other": "o", "sentence": "s", "label": "l"}, ("sentence",)),
        ({"sentence2": "b", "sentence1": "a", "genre": "g"}, ("sentence1", "sentence2")),
        ({"index": 0, "question": "q", "sentence": "s"}, ("question", "sentence")),
        ({"premise": "p", "hypothesis": "h", "annotator": "x"}, ("premise", "hypothesis")),
        ({"id": 1, "label": "l", "review": "r"}, ("review",)),
    ],
)
def test_text_columns(columns, texts):
    assert text_columns_of(Dataset.from_list([columns]), "label") == texts


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"id": "u", "review": "r", "label": "l"}, "may be id or review"),
        ({"text": "t", "sentence": "s"}, "may be text or sentence"),
        ({"text": "t", "sentence1": "a", "sentence2": "b"}, "may be sentence1,sentence2 or text"),
        ({"label": "l", "n": 1, "when": pd.Timestamp("2020-01-01")}, "n (int64), when (timestamp"),
        ({"label": "l"}, "beside the label 'label' there is nothing"),
        ({"label": "l", "tokens": ["a", "b"]}, "tokens (lists"),
    ],
)
def test_text_columns_that_are_not_guessed(columns, part):
    with pytest.raises(ValueError, match=r"^text_column_names") as raised:
        text_columns_of(Dataset.from_list([columns]), "label")
    assert part in str(raised.value)


GOOD = "text,label\n" + "".join(f"fine {n},good\ndull {n},bad\n" for n in range(10))


@pytest.mark.parametrize(
    ("words", "splits", "parts"),
    [
        ((), {"train": "text,label\nfine,1\ndull,\nbad,0\n"}, ["row 1 of the training split has no label"]),
        ((), {"train": "text,label\nfine,1\ndull,1\n"}, ["all 2 rows of the training split have the label 1"]),
        ((), {"train": "text,kind\nfine,1\n"}, ["'label'", "text, kind", "--label_column_name names it"]),
        ((), {"train": "id,review,label\nu,fine,1\nv,dull,0\n"}, ["--text_column_names is needed", "id or review"]),
        (("--text_column_names", "txt"), {"train": GOOD}, ["--text_column_names: there is no column 'txt'"]),
        (("--text_column_names", "label"), {"train": GOOD}, ["'label' holds the labels", "--label_column_name"]),
        (("--text_column_names", "a,b,c"), {"train": GOOD}, ["one or two columns"]),
        (("--do_eval",), {"train": GOOD, "validation": "text,label\nfine,good\nx,\n"}, ["row 1", "it is empty"]),
        (
            ("--do_predict",),
            {"train": GOOD, "test": "text,label\nfine,good\nx,\n"},
            ["--test_file: row 1 has no label"],
        ),
        (("--encoding", "klingon"), {"train": GOOD}, ["--encoding 'klingon'"]),
        (("--quoting", "all"), {"train": GOOD}, ["--quoting"]),
        (("--column_names", "a,a"), {"train": GOOD}, ["--column_names 'a,a'"]),
        (("--do_regression", "true"), {"train": GOOD}, ["row 0 has the label 'good', a regression needs a number"]),
        (("--dataset_name", "imdb", "--encoding", "latin-1"), {}, ["--encoding 'latin-1'", "give --train_file"]),
        (("--dataset_name", "imdb", "--do_regression", "true"), {}, ["--do_regression"]),
    ],
)
def test_files_that_are_refused(run, capsys, words, splits, parts):
    line = error(capsys, run, *words, **splits)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    "test", ["text,label\nfine,\ndull,\n", "text,label\nfine,-1\ndull,-1\n", "text\nfine\ndull\n"]
)
def test_a_test_file_without_labels_is_predicted(run, tmp_path, capsys, test):
    results = run("--do_predict", train=GOOD, test=test)
    assert "2 rows; without labels" in capsys.readouterr().out
    assert "test_accuracy" not in results
    assert len((tmp_path / "out" / "predict_results.txt").read_text().splitlines()) == 3


def test_minus_one_may_be_a_class(run):
    train = "text,label\n" + "".join(f"a {n},{n % 3 - 1}\n" for n in range(12))
    assert "test_accuracy" in run("--do_predict", train=train, test="text,label\nfine,-1\ndull,-1\n")


def test_a_text_column_called_label(run, tmp_path):
    train = "label,y\n" + "".join(f"fine {n},good\ndull {n},bad\n" for n in range(10))
    columns = ["--text_column_names", "label", "--label_column_name", "y"]
    results = run(*columns, "--do_eval", "--do_predict", train=train, validation=train, test="label\nfine\n")
    assert results["eval_samples"] == 20
    assert "fine" in AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()


def test_scores_stay_scores(run, capsys):
    train = "text,label\n" + "".join(f"a {n},{n % 4 + 0.5}\n" for n in range(12))
    results = run("--do_eval", train=train, validation=train)
    assert "numbers to approach" in (told := capsys.readouterr().out)
    assert "12 rows; from 0.5 to 3.5" in told
    assert results["eval_mse"] == pytest.approx(results["eval_loss"], rel=1e-4)


def chinese(rows, seed=0):
    """No word occurs twice by its spaces, but two characters of each text tell its class."""
    rng = random.Random(seed)
    lines = []
    for n in range(rows):
        text = [*rng.choices("天地人山水火风雨", k=6), "好" if n % 2 else "坏"]
        rng.shuffle(text)
        lines.append(json.dumps({"text": "".join(text), "label": n % 2}, ensure_ascii=False))
    return "\n".join(lines)


def test_chinese_texts_are_characters_unless_words_are_asked_for(run, tmp_path, capsys):
    run(train=chinese(20), ending="jsonl")
    assert "each character is a token" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("好人") == ["好", "人"]
    run("--vocabulary", "words", "--output_dir", str(tmp_path / "words"), train=chinese(20), ending="jsonl")
    assert "--vocabulary characters or jieba fits it better" in capsys.readouterr().out
    twice = ("--vocabulary", "words", "--min_count", "2", "--output_dir", str(tmp_path / "none"))
    assert "characters" in error(capsys, run, *twice, train=chinese(20), ending="jsonl")


def test_a_model_of_jieba_s_words_answers_outside_as_inside(run, tmp_path):
    pytest.importorskip("jieba")
    words = ("--vocabulary", "jieba", "--do_predict", "--learning_rate", "0.01", "--max_steps", "30")
    run(*words, train=chinese(200), test=chinese(60, seed=1), ending="jsonl")
    lines = (tmp_path / "out" / "predict_results.txt").read_text().splitlines()[1:]
    inside = [line.split("\t")[1] for line in lines]
    assert {*inside} == {"0", "1"}
    classify = pipeline("text-classification", model=str(tmp_path / "out"), trust_remote_code=True)
    texts = [json.loads(line)["text"] for line in chinese(60, seed=1).splitlines()]
    assert [answer["label"] for answer in classify(texts)] == inside


def test_a_missing_model_is_blamed_on_its_own_flag(tmp_path, capsys):
    words = ["textcls", "--do_train", "--train_file", str(tmp_path / "a.csv"), "--output_dir", str(tmp_path / "out")]
    (tmp_path / "a.csv").write_text(GOOD)
    assert cli.main([*words, "--model_name_or_path", str(tmp_path / "none")]) == 2
    assert "error: --model_name_or_path" in capsys.readouterr().err

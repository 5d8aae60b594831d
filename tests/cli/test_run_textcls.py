"""`run_textcls.py` end to end, on generated files in the form of its data sets."""

import json
import random
from pathlib import Path

import datasets
import launches
import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_rat.cli import main as cli
from hf_rat.cli import textcls
from hf_rat.data.tasks import CLUE, TEXTS
from hf_rat.finetuning import word_model
from hf_rat.finetuning.flags import build, given_flags, read_flags
from hf_rat.finetuning.word_model_flags import WordModelArguments
from hf_rat.models import COMPANIONS, RNNForSequenceClassification

ROOT = Path(__file__).resolve().parents[2]
GOOD, BAD = ("fine", "lovely", "great"), ("dull", "awful", "grim")


def reviews(rows, classes=2, seed=0, label=True):
    """Texts whose words tell their class."""
    rng = random.Random(seed)
    columns = {"text": [], "label": []}
    for index in range(rows):
        number = index % classes
        words = [rng.choice((GOOD, BAD)[number % 2]), f"word{number}", *rng.choices("abcdefgh", k=rng.randint(0, 9))]
        rng.shuffle(words)
        columns["text"].append(" ".join(words))
        columns["label"].append(number if label else -1)
    return columns


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every split that the known data sets come with, as parquet files."""
    folder = tmp_path_factory.mktemp("data")
    for task in (*TEXTS, *CLUE):
        (folder / task.folder).mkdir(parents=True, exist_ok=True)
        for number, split in enumerate(("train", "validation", "test")):
            columns = reviews(60, len(task.labels), number, label=split != "test" or task.test[0].labelled)
            columns[task.text_columns[0]] = columns.pop("text")
            Dataset.from_dict(columns).to_parquet(folder / task.folder / f"{split}.parquet")
    return str(folder)


SMALL = ["--embedding_size", "8", "--min_count", "1"]


@pytest.fixture
def common(data, tmp_path):
    """Flags of one short run; the last ones are for models from scratch."""
    where = ["--data_dir", data, "--output_dir", str(tmp_path / "out"), "--disable_tqdm", "True", "--use_cpu"]
    return [*where, "--do_train", "--do_eval", "--num_train_epochs", "2", "--per_device_train_batch_size", "8", *SMALL]


@pytest.mark.parametrize("model", COMPANIONS)
def test_every_model_trains_is_selected_and_tested(common, tmp_path, model):
    results = textcls.run(
        ["--dataset_name", "imdb", "--model", model, "--hidden_size", "8", "--do_predict", "--reg", "rat", *common]
    )
    # 120 reviews of both labelled splits: a tenth each for validation and test.
    assert (results["train_samples"], results["eval_samples"], results["test_samples"]) == (96, 12, 12)
    assert 0.0 <= results["test_accuracy"] <= 1.0
    out = tmp_path / "out"
    assert json.loads((out / "all_results.json").read_text())["test_accuracy"] == results["test_accuracy"]
    state = json.loads((out / "trainer_state.json").read_text())
    best = max(entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry)
    assert state["best_metric"] == best == results["eval_accuracy"]
    # What was saved is a model like any other.
    classify = pipeline("text-classification", model=str(out), tokenizer=AutoTokenizer.from_pretrained(out))
    assert classify("a fine word1")[0]["label"] in ("negative", "positive")


def test_the_best_checkpoint_may_be_that_of_the_lowest_loss(common, tmp_path):
    words = ["--dataset_name", "imdb", "--model", "textcnn", "--metric_for_best_model", "loss", *common]
    textcls.run([*words, "--num_train_epochs", "4", "--learning_rate", "3e-2"])
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["best_metric"] == min(entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry)


def test_a_model_learns(common):
    longer = ["--num_train_epochs", "8", "--learning_rate", "1e-2", "--embedding_size", "32"]
    results = textcls.run(["--dataset_name", "imdb", "--model", "textcnn", *common, *longer])
    assert results["eval_accuracy"] > 0.9


def test_splits_are_drawn_by_a_fixed_seed_and_keep_apart(data):
    from hf_rat.data.loading import load_task

    imdb = TEXTS[0]
    one = load_task(imdb, ["train", "validation", "test"], data)
    two = load_task(imdb, ["validation"], data)
    assert one["validation"]["text"][:] == two["validation"]["text"][:]
    assert set(two) == {"validation"}
    pool = [text for split in ("train", "test") for text in reviews(60, 2, 0 if split == "train" else 2)["text"]]
    drawn = [text for split in one.values() for text in split["text"]]
    assert sorted(drawn) == sorted(pool)
    assert [len(one[split]) for split in ("train", "validation", "test")] == [96, 12, 12]


@pytest.mark.parametrize("name", ["elec", "semeval2015", "ag_news"])
def test_the_other_known_data(common, name):
    results = textcls.run(["--dataset_name", name, *common, "--do_predict", "--num_train_epochs", "1"])
    task = next(task for task in TEXTS if task.name == name)
    assert {f"test_{metric}" for metric in task.metrics} <= set(results)


def test_two_runs_may_read_the_same_texts_at_once(common, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    read = word_model._read_words

    def slower(*arguments):
        monkeypatch.setattr(word_model, "_read_words", read)
        textcls.run(["--dataset_name", "imdb", *common, "--output_dir", str(tmp_path / "quicker")])
        return read(*arguments)

    monkeypatch.setattr(word_model, "_read_words", slower)
    textcls.run(["--dataset_name", "imdb", *common])
    words = [json.loads((tmp_path / name / "tokenizer.json").read_text())["model"] for name in ("out", "quicker")]
    assert words[0] == words[1]
    assert len(list((tmp_path / "cache" / "hf_rat_vocabularies").iterdir())) == 1


def test_a_second_run_reads_no_text_again(common, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    first = textcls.run(["--dataset_name", "imdb", *common])

    files = {path for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    again = textcls.run(["--dataset_name", "imdb", *common, "--output_dir", str(tmp_path / "again")])
    assert again["eval_loss"] == first["eval_loss"]
    assert {path for path in (tmp_path / "cache").rglob("*") if path.is_file()} == files
    textcls.run(["--dataset_name", "imdb", *common, "--output_dir", str(tmp_path / "other"), "--min_count", "2"])
    assert {path for path in (tmp_path / "cache").rglob("*") if path.is_file()} > files


def test_train_size_takes_the_same_rows_of_all(common, tmp_path):
    sizes = []
    for size in ("10", "20"):
        folder = tmp_path / size
        textcls.run(["--dataset_name", "imdb", *common, "--train_size", size, "--output_dir", str(folder)])
        words = set(AutoTokenizer.from_pretrained(folder).get_vocab())
        sizes.append(words)
    assert sizes[0] < sizes[1]  # the vocabulary comes from the training texts that are used


@pytest.mark.parametrize("name", ["clue/tnews", "clue/iflytek"])
def test_clue_submission(common, tmp_path, name):
    task = next(task for task in CLUE if task.name == name)
    textcls.run(["--dataset_name", name, *common, "--do_predict", "--submission_dir", str(tmp_path / "sub")])
    lines = (tmp_path / "sub" / task.test[0].file).read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["id"] for answer in answers] == list(range(60))
    assert {answer["label"] for answer in answers} <= set(task.labels)
    # Characters are the words of Chinese.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("汉字") == ["<unk>", "<unk>"] or tokenizer.tokenize("汉字") == ["汉", "字"]


def test_one_file_of_one_s_own_is_enough(common, tmp_path):
    Dataset.from_dict(reviews(40)).to_csv(tmp_path / "train.csv", index=False)
    words = ["--train_file", str(tmp_path / "train.csv"), *common]
    with pytest.raises(ValueError, match=r"--validation_file: .* or --validation_from_train"):
        textcls.run(words)
    unscored = ["--do_eval", "False", "--eval_strategy", "no", "--save_strategy", "no"]
    with pytest.raises(ValueError, match="add --do_eval"):
        textcls.run([*words, "--validation_from_train", "0.25", *unscored])
    results = textcls.run([*words, "--validation_from_train", "0.25"])
    assert (results["train_samples"], results["eval_samples"]) == (30, 10)


def test_own_files_with_empty_texts_and_vectors(common, tmp_path):
    columns = reviews(40)
    columns["text"][:3] = ["", "   ", "fine"]
    for split in ("train", "validation", "test"):
        Dataset.from_dict(columns).to_csv(tmp_path / f"{split}.csv", index=False)
    table = np.eye(8, dtype=np.float32)
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip((*GOOD, *BAD), table, strict=False)]
    (tmp_path / "vectors.txt").write_text("\n".join(lines) + "\n")
    files = [f"--{split}_file={tmp_path / f'{split}.csv'}" for split in ("train", "validation", "test")]
    vectors = ["--word_vectors", str(tmp_path / "vectors.txt"), "--freeze_word_vectors"]
    results = textcls.run([*files, *vectors, *common, "--do_predict", "--reg", "fgm"])
    assert np.isfinite([results["train_loss"], results["eval_loss"], results["test_loss"]]).all()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    ids = AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids(list(GOOD))
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach()[ids], table[:3])


def test_recurrent_dropouts_reach_the_configuration(common, tmp_path):
    kinds = ["--dropout_kind", "variational,recurrent=0.5", "--recurrent_dropout", "0.3", "--dropout_per_step"]
    textcls.run(["--dataset_name", "imdb", "--model", "lstm", "--dropout", "0.2", *kinds, *common])
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    wanted = {"variational": 0.3, "recurrent": 0.5, "per_step": ["variational", "recurrent"]}
    assert config.recurrent_dropouts == wanted
    assert config.classifier_dropout == 0.2
    assert config.embedding_dropout == 0.0  # --dropout is the rate before the classifier


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            ["--dropout_kind", "input=0.2,output=0.5,recurrent", "--dropout_per_step", "input,output"],
            {"recurrent_dropouts": {"input": 0.2, "output": 0.5, "recurrent": 0.25, "per_step": ["input", "output"]}},
        ),
        (
            ["--dropout_kind", "dropconnect=0.3,dropconnect_bias,dropconnect_per=example,input=0.1"],
            {
                "recurrent_dropouts": {
                    "dropconnect": 0.3,
                    "dropconnect_bias": True,
                    "dropconnect_per": "example",
                    "input": 0.1,
                }
            },
        ),
        (
            ["--dropout_kind", "variational=0.3,variational_per=batch,per_gate"],
            {"recurrent_dropouts": {"variational": 0.3, "variational_per": "batch", "per_gate": True}},
        ),
        (["--model", "rnn", "--nonlinearity", "relu"], {"nonlinearity": "relu"}),
        (["--model", "gru", "--no_reset_after"], {"reset_after": False}),
        (["--num_hidden_layers", "2", "--between", "tanh"], {"between": "tanh"}),
    ],
)
def test_options_of_recurrent_layers_reach_the_configuration(words, wanted):
    given = given_flags(["--model", "lstm", "--output_dir", "nowhere", *words], "textcls", (WordModelArguments,))
    config = word_model.word_config(read_flags(given), build(WordModelArguments, given), vocab_size=5)
    assert config.recurrent_dropouts == wanted.get("recurrent_dropouts", {})
    assert {name: getattr(config, name) for name in wanted} == wanted
    RNNForSequenceClassification(config)


def test_a_trained_model_is_trained_on_and_may_be_scheduled(common, tmp_path):
    textcls.run(["--dataset_name", "imdb", *common])
    again = ["--output_dir", str(tmp_path / "again"), "--model_name_or_path", str(tmp_path / "out")]
    callbacks = ["--dropout_schedule", "curriculum", "--early_stopping_patience", "1"]
    textcls.run(["--dataset_name", "imdb", *common[: -len(SMALL)], *again, *callbacks])
    assert (tmp_path / "again" / "model.safetensors").is_file()


def test_a_tokenizer_of_another_model_is_told(common, tmp_path):
    for folder, min_count in (("small", "30"), ("large", "1")):
        where = ["--output_dir", str(tmp_path / folder), "--min_count", min_count]
        textcls.run(["--dataset_name", "imdb", *common, *where, "--num_train_epochs", "1"])
    mixed = ["--model_name_or_path", str(tmp_path / "small"), "--tokenizer_name", str(tmp_path / "large")]
    with pytest.raises(ValueError, match="do not belong together"):
        textcls.run(["--dataset_name", "imdb", *common[: -len(SMALL)], *mixed])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset_name", "imdb", "--model", "transformer"], "--model"),
        (["--dataset_name", "imdb", "--model", "textcnn", "--dropout_kind", "variational"], "--dropout_kind"),
        (["--dataset_name", "imdb", "--model", "lstm", "--dropout_kind", "moon"], "moon"),
        (["--dataset_name", "imdb", "--model", "lstm", "--dropout_kind", "rnndrop=1.0"], "rnndrop=1.0"),
        (["--dataset_name", "imdb", "--model", "lstm", "--dropout_kind", "rnndrop=x"], "'x' is not a number"),
        (
            [
                "--dataset_name",
                "imdb",
                "--model",
                "lstm",
                "--dropout_kind",
                "input=.2",
                "--dropout_per_step",
                "output",
            ],
            "--dropout_per_step needs --dropout_kind output",
        ),
        (["--dataset_name", "imdb", "--model", "lstm", "--dropout_per_step", "zoneout"], "'zoneout' is not known"),
        (["--dataset_name", "imdb", "--model", "lstm", "--dropout_kind", "per_gate=yes"], "per_gate stands alone"),
        (["--dataset_name", "imdb", "--model", "lstm", "--nonlinearity", "relu"], "--nonlinearity 'relu' needs"),
        (["--dataset_name", "imdb", "--model", "lstm", "--no_reset_after"], "needs cell='gru'; the cell is 'lstm'"),
        (["--dataset_name", "imdb", "--model", "textcnn", "--between", "tanh"], "textcnn has no use for it"),
        (["--dataset_name", "imdb", "--model", "lstm", "--model_name_or_path", "here"], "--model"),
        (["--dataset_name", "imdb", "--lora_r", "4"], "--lora_r"),
        (["--dataset_name", "imdb", "--train_size", "1000"], "--train_size"),
        (["--dataset_name", "imdb", "--submission_dir", "sub"], "clue/tnews"),
        (["--dataset_name", "imdb", "--freeze_word_vectors"], "--word_vectors"),
        (["--dataset_name", "imdb", "--word_vectors", "nowhere.txt"], "nowhere.txt"),
        (["--dataset_name", "imdb", "--text_column_names", "label"], "must be text"),
        (["--dataset_name", "imdb", "--early_stopping_patience", "2", "--save_strategy", "no"], "--early_stopping"),
        (["--dataset_name", "imdb", "--dropout_gamma", "0.1"], "--dropout_schedule"),
        (["--dataset_name", "imdb", "--model", "bilstm", "--pretrain_lm"], "--model lstm, gru, rnn"),
        (["--dataset_name", "imbd"], "did you mean imdb?"),
        (["--task_name", "rte"], "--dataset_name"),
        (["--model", "textcnn", "--do_predict"], "needs a data set"),
        (["--model", "textcnn", "--train_size", "3"], "--train_size needs a data set"),
        (["--model", "textcnn", "--dropout_schedule", "curriculum"], "--dropout_schedule needs a data set"),
        (["--model", "textcnn", "--reg", "fgm(site='encoder')"], "site='encoder'"),
        (["--dataset_name", "imdb", "--unlabeled_file", "none.csv"], "needs --pretrain_lm or --semi_supervised"),
        (["--dataset_name", "imdb", "--unlabeled_size", "9"], "--unlabeled_size 9 needs --pretrain_lm"),
        (
            ["--dataset_name", "ag_news", "--semi_supervised", "--unlabeled_size", "9", "--reg", "vat"],
            "--unlabeled_size 9: there is no split without labels",
        ),
        (["--dataset_name", "imdb", "--pretrain_dir", "lm"], "--pretrain_dir 'lm' needs --pretrain_lm"),
        (["--dataset_name", "imdb", "--truncated_bptt", "9"], "--truncated_bptt 9: --model textcnn has no use for it"),
        (["--dataset_name", "imdb", "--model", "bilstm", "--truncated_bptt", "9"], "--truncated_bptt 9 needs one dir"),
        (["--dataset_name", "imdb", "--lr_decay", "0.9"], "--lr_decay 0.9 needs --lr_scheduler_type 'constant'"),
        (["--dataset_name", "imdb", "--recurrent_dropout", "0.5"], "--recurrent_dropout 0.5 needs --dropout_kind"),
        (
            ["--dataset_name", "imdb", "--train_file", "a.csv"],
            "--dataset_name 'imdb' and --train_file 'a.csv' name two",
        ),
        (["--dataset_name", "imdb", "--pretrain_epochs", "3"], "--pretrain_epochs 3.0 needs --pretrain_lm"),
    ],
)
def test_errors_of_one_line(common, capsys, words, message):
    if "--model_name_or_path" in words:
        common = common[: -len(SMALL)]
    if words[0] == "--model":
        common = common[2:]
    assert cli.main(["textcls", *words, *common]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]  # before it there may be progress bars of `datasets`
    assert error.startswith("error: ")
    assert message in error


def test_labels_that_differ_between_splits(common, tmp_path):
    from datasets import ClassLabel, Features, Value

    for split, names in (("train", ["a", "b"]), ("validation", ["b", "a"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        Dataset.from_dict(reviews(8), features=features).to_parquet(tmp_path / f"{split}.parquet")
    files = [f"--{split}_file={tmp_path / f'{split}.parquet'}" for split in ("train", "validation")]
    with pytest.raises(ValueError, match="labels of the split 'validation'"):
        textcls.run([*files, *common])


@pytest.mark.slow
def test_the_example_run_of_the_script(tmp_path):
    words = ["--reg", "rat", "--output_dir", str(tmp_path), "--use_cpu", "--num_train_epochs", "2"]
    printed = launches.fork(ROOT / "run_textcls.py", *words, "--max_train_samples", "100", "--max_eval_samples", "200")
    assert any(line.startswith("plain  ") for line in printed.splitlines())
    assert (tmp_path / "model.safetensors").is_file()


def test_a_classifier_starts_from_the_language_model(common, tmp_path, data):
    texts = reviews(40, seed=9)["text"]
    Dataset.from_dict({"text": [f"{text} unseen unseen" for text in texts], "label": [-1] * 40}).to_parquet(
        Path(data) / "imdb" / "unsupervised.parquet"
    )
    lm = ["--dataset_name", "imdb", "--model", "lstm", "--pretrain_lm", "--pretrain_epochs", "3", "--hidden_size", "8"]
    textcls.run([*lm, *common, "--learning_rate", "0.02", "--reg", "fgm"])
    out = tmp_path / "out"
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert "unseen" in tokenizer.get_vocab()  # a word of the unlabelled texts alone
    assert tokenizer("a fine")["input_ids"][-1] == tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(out / "language_model")
    ids = torch.tensor([tokenizer("fine unseen")["input_ids"]])
    assert model(ids).logits[0, 1].argmax() in tokenizer.convert_tokens_to_ids(["unseen", "<eos>"])
    # Without training steps of its own, the classifier's layers are the language model's.
    still = tmp_path / "still"
    textcls.run([*lm, *common, "--learning_rate", "0", "--output_dir", str(still)])
    language = AutoModelForCausalLM.from_pretrained(still / "language_model").rnn.state_dict()
    for name, value in AutoModelForSequenceClassification.from_pretrained(still).rnn.state_dict().items():
        assert torch.equal(value, language[name]), name


def test_unlabelled_texts_are_regularized_too(common, tmp_path):
    Dataset.from_dict(reviews(30)).to_csv(tmp_path / "train.csv", index=False)
    Dataset.from_dict({"text": reviews(50, seed=5)["text"]}).to_csv(tmp_path / "unlabeled.csv", index=False)
    files = [f"--{split}_file={tmp_path / 'train.csv'}" for split in ("train", "validation")]
    both = [*files, "--unlabeled_file", str(tmp_path / "unlabeled.csv"), "--semi_supervised"]
    lstm = ["--model", "lstm", "--hidden_size", "8", "--logging_steps", "1"]
    textcls.run([*both, *lstm, *common, "--reg", 'adversarial_dropout(site="recurrent", rate=0.3) + vat'])
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert any("loss_smoothness" in entry for entry in history)
    known = ["--dataset_name", "ag_news", *both[-3:], "--reg", "rdrop", "--max_steps", "2"]
    textcls.run([*known, *common, "--logging_steps", "1", "--output_dir", str(tmp_path / "known")])
    history = json.loads((tmp_path / "known" / "trainer_state.json").read_text())["log_history"]
    assert any("loss_unlabeled_consistency" in entry for entry in history)
    with pytest.raises(ValueError, match="plain"):
        textcls.run([*both, *common, "--output_dir", str(tmp_path / "plain")])
    with pytest.raises(ValueError, match="--unlabeled_file"):
        textcls.run([*files, "--semi_supervised", *common, "--reg", "vat", "--output_dir", str(tmp_path / "none")])


@pytest.fixture
def no_sleep(monkeypatch):
    """Without the five seconds that `datasets` sleeps, for fear of threads, at each end of a stream of parquet."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.mark.usefixtures("no_sleep")
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_stream_is_trained_on_as_files_are(common, tmp_path, kind):
    rows = Dataset.from_dict(reviews(60))
    for split in ("train", "validation"):
        path = str(tmp_path / f"{split}.{kind}")
        {"csv": rows.to_csv, "parquet": rows.to_parquet, "jsonl": rows.to_json}[kind](path)
    files = [f"--{split}_file={tmp_path / f'{split}.{kind}'}" for split in ("train", "validation")]
    steps = ["--max_steps", "30", "--eval_strategy", "no", "--save_strategy", "no", "--learning_rate", "1e-2"]
    results = textcls.run([*files, "--streaming", *common, *steps, "--reg", "fgm"])
    assert results["eval_accuracy"] > 0.9
    assert "train_samples" not in results
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert set(config.id2label.values()) == {"0", "1"}


@pytest.mark.usefixtures("no_sleep")
def test_streams_of_known_data_and_what_they_refuse(common, data, tmp_path):
    steps = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"]
    results = textcls.run(["--dataset_name", "clue/tnews", "--streaming", *common, *steps])
    assert np.isfinite(results["train_loss"])
    for words, message in (
        (["--dataset_name", "clue/tnews"], "--max_steps"),
        (["--dataset_name", "imdb", *steps], "drawn from the whole"),
        (["--dataset_name", "clue/tnews", "--train_size", "5", *steps], "--train_size 5"),
    ):
        with pytest.raises(ValueError, match=message):
            textcls.run([*words, "--streaming", *common, "--output_dir", str(tmp_path / "other")])
    broken = tmp_path / "train.jsonl"
    broken.write_text('{"text": "fine", "label": 0}\n{"text": null, "label": 1}\n')
    where = ["--output_dir", str(tmp_path / "broken"), "--do_eval", "False"]
    with pytest.raises(ValueError, match="row 1 has None"):
        textcls.run([f"--train_file={broken}", "--streaming", *common, *steps, *where])


@pytest.mark.slow
def test_a_stream_in_two_processes_makes_the_model_of_one(tmp_path):
    rows = Dataset.from_dict(reviews(60))
    for split in ("train", "validation"):
        rows.to_json(str(tmp_path / f"{split}.jsonl"))
    weights = []
    for processes, size in ((1, 8), (2, 4)):
        out = tmp_path / f"{processes}"
        command = [f"--{split}_file={tmp_path / f'{split}.jsonl'}" for split in ("train", "validation")]
        command += [
            "--streaming",
            "--do_train",
            "--max_steps",
            "3",
            "--per_device_train_batch_size",
            str(size),
            "--dropout",
            "0",
        ]
        command += ["--optim", "sgd", "--learning_rate", "1", "--reg", "fgm", "--use_cpu", "--output_dir", str(out)]
        launches.fork(ROOT / "run_textcls.py", *command, processes=processes)
        weights.append(load_file(out / "model.safetensors"))
    for name, one in weights[0].items():
        torch.testing.assert_close(weights[1][name], one, rtol=1e-4, atol=1e-5)


def test_a_data_set_without_a_validation_split_holds_back_rows_of_training(common):
    name = ["--dataset_name", "imdb_25k_25k", *common, "--do_predict", "--num_train_epochs", "1"]
    with pytest.raises(ValueError, match="has no validation split: leave out --do_eval"):
        textcls.run(name)
    results = textcls.run([*name, "--validation_from_train", "0.15"])
    assert (results["train_samples"], results["eval_samples"], results["test_samples"]) == (51, 9, 60)


def test_semi_supervised_adversarial_dropout_as_published(common, tmp_path, data):
    """Park et al.'s second table in one run: everything that it asks for, together."""
    Dataset.from_dict({"text": reviews(60, seed=9)["text"], "label": [-1] * 60}).to_parquet(
        Path(data) / "imdb" / "unsupervised.parquet"
    )
    words = ["--dataset_name", "imdb", "--model", "lstm", "--hidden_size", "8", "--classifier_hidden_size", "6"]
    semi = ["--pretrain_lm", "--semi_supervised", "--unlabeled_size", "45", "--truncated_bptt", "3"]
    step = ["--no_clip_embeddings", "--max_grad_norm", "0.05", "--lr_scheduler_type", "constant", "--lr_decay", "0.9"]
    kept = ["--average", "ema(0.9)", "--normalize_embeddings", "--learning_rate", "0.01", "--logging_steps", "1"]
    reg = 'adversarial_dropout(site="recurrent", rate=0.25, divergence="js", steps=2) + vat(epsilon=5)'
    textcls.run([*words, *semi, *step, *kept, *common, "--reg", reg])
    out = tmp_path / "out"
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert len(rates) > 3
    assert rates == pytest.approx([0.01 * 0.9**step for step in range(len(rates))])
    assert all(any(name.startswith("loss_unlabeled") for name in entry) for entry in history if "loss" in entry)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert (model.config.classifier_hidden_size, model.config.truncated_bptt) == (6, 3)
    assert model.classifier.in_features == 6
    language = json.loads((out / "language_model" / "config.json").read_text())
    assert language["architectures"] == ["RNNForCausalLM"]


def test_runs_share_a_language_model(common, tmp_path, data, capsys):
    Dataset.from_dict({"text": reviews(20, seed=9)["text"], "label": [-1] * 20}).to_parquet(
        Path(data) / "imdb" / "unsupervised.parquet"
    )
    shared = tmp_path / "shared"
    words = [
        "--dataset_name",
        "imdb",
        "--model",
        "lstm",
        "--pretrain_lm",
        "--pretrain_dir",
        str(shared),
        "--hidden_size",
    ]

    def start(name, size="8", *more):
        textcls.run([*words, size, *common, "--learning_rate", "0", "--output_dir", str(tmp_path / name), *more])
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / name).rnn.state_dict()

    first = start("first", "8", "--seed", "3")
    assert f"Language model: taken from {shared}" not in capsys.readouterr().out
    second = start("second", "8", "--seed", "4", "--classifier_hidden_size", "5")
    assert f"Language model: taken from {shared}" in capsys.readouterr().out
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not any("unfinished" in path.name for path in shared.iterdir())
    with pytest.raises(ValueError, match="has --hidden_size 8, the classifier 9"):
        start("wider", "9")
    with pytest.raises(ValueError, match="is of another vocabulary"):
        start("fewer", "8", "--max_vocabulary", "5")

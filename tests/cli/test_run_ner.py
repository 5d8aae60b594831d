"""`hf-rat ner` end to end, on made-up sentences in every form that it reads."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from conlleval import conlleval
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from hf_rat.cli import compare, ner
from hf_rat.data.tasks import TAGGED
from hf_rat.data.word_encoding import case_of

FILLERS = ["he", "saw", "the", "old", "bridge", "near", "and", "."]
NAMES = {"PER": ["Anna", "Karl", "Mira"], "LOC": ["ROME", "PARIS", "OSLO"]}


def sentences(count, seed, unknown=False):
    """Words and tags; a name has one or two words, and its capitals tell its type."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(rng.randint(2, 6)):
            if not tags or tags[-1] != "O" or rng.random() < 0.3:
                words.append(rng.choice(FILLERS))
                tags.append("O")
            else:
                kind = rng.choice(list(NAMES))
                name = rng.choices(NAMES[kind], k=rng.randint(1, 2))
                words += [f"{word}x" for word in name] if unknown else name
                tags += [f"B-{kind}", *[f"I-{kind}"] * (len(name) - 1)]
        rows.append((words, tags))
    return rows


SPLITS = {"train": sentences(60, 0), "validation": sentences(20, 1), "test": sentences(21, 2)}


def write(folder, ending, rows, split, tagged=True):
    """The path of a file of sentences."""
    path = folder / f"{split}{ending}"
    columns = {"tokens": [words for words, _ in rows]} | ({"tags": [tags for _, tags in rows]} if tagged else {})
    match ending:
        case ".conll":
            lines = [
                "\n".join(" X ".join(pair) if tagged else pair[0] for pair in zip(*row, strict=True)) for row in rows
            ]
            path.write_text("\n\n".join(lines) + "\n")
        case ".json":
            path.write_text(
                json.dumps([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
            )
        case ".parquet":
            Dataset.from_dict(columns).to_parquet(path)
        case _:
            spaced = {name: [" ".join(row) for row in value] for name, value in columns.items()}
            Dataset.from_dict(spaced).to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of every kind, and two tiny transformers: of pieces of words, and of bytes."""
    folder = tmp_path_factory.mktemp("ner")
    for ending in (".conll", ".json", ".csv", ".tsv", ".parquet"):
        for split, rows in SPLITS.items():
            write(folder, ending, rows, split)
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "."]
    pieces += ["he", "saw", "the", "old", "ro", "##me", "an", "##na", *letters, *(f"##{letter}" for letter in letters)]
    model = Tokenizer(WordPiece({piece: row for row, piece in enumerate(pieces)}, unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    model.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    for family, config, kind in (
        ("bert", BertConfig, BertModel),
        ("roberta", RobertaConfig, RobertaModel),
    ):
        if family == "roberta":
            vocabulary = {mark: row for row, mark in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ"))}
            characters = sorted({*"".join(word for rows in SPLITS.values() for words, _ in rows for word in words)})
            vocabulary |= {character: row for row, character in enumerate(characters, len(vocabulary))}
            tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[])
        special = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        kind(config(**sizes, **special, max_position_embeddings=64, initializer_range=0.3)).save_pretrained(
            folder / family
        )
        tokenizer.save_pretrained(folder / family)
    return folder


SMALL = ["--embedding_size", "8", "--hidden_size", "8", "--min_count", "1"]


def files(data, ending, *splits):
    return [word for split in splits for word in (f"--{split}_file", str(data / f"{split}{ending}"))]


def flags(data, tmp_path, *more, ending=".conll", own=True):
    """Of one short run."""
    words = [
        *files(data, ending, "train", "validation"),
        "--do_train",
        "--do_eval",
        "--disable_tqdm",
        "True",
        "--use_cpu",
    ]
    words += ["--output_dir", str(tmp_path / "out"), "--num_train_epochs", "2", "--per_device_train_batch_size", "8"]
    return [*words, *(SMALL if own else ()), *more]


def asked_again(folder, rows, cases=False):
    """The tags that the saved model gives to the words of each sentence, asked one by one; and the logits."""
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found, logits = [], []
    for words, _ in rows:
        batch = tokenizer([words], is_split_into_words=True, return_tensors="pt")
        places = batch.word_ids(0)
        if cases:
            batch["token_type_ids"] = torch.tensor([[case_of(words[place]) for place in places]])
        with torch.no_grad():
            out = model(**batch).logits[0]
        first = [places.index(word) for word in range(len(words))]
        logits.append(out[first])
        found.append([model.config.id2label[int(number)] for number in out[first].argmax(1)])
    return found, torch.cat(logits).numpy()


def check(folder, results, cases=False):
    """The scores and what lies in the folder, against the saved model and conlleval."""
    for split, prefix in (("validation", "eval"), ("test", "test")):
        answered, logits = asked_again(folder, SPLITS[split], cases)
        for name, value in conlleval([tags for _, tags in SPLITS[split]], answered).items():
            assert results[f"{prefix}_{name}"] == pytest.approx(value)
        kept = np.load(folder / f"{prefix}_predictions.npz")
        np.testing.assert_allclose(kept["logits"], logits, atol=1e-4)
        assert kept["words"].tolist() == [len(words) for words, _ in SPLITS[split]]
    lines = (folder / "predict_results.txt").read_text().splitlines()
    assert lines == ["index\tprediction", *(f"{row}\t{' '.join(tags)}" for row, tags in enumerate(answered))]


@pytest.mark.parametrize("model", ["lstm", "bilstm"])
def test_our_models_train_and_are_tested(data, tmp_path, model):
    own = ["--model", model, "--dropout_kind", "recurrent", "--window", "3", "--case_features", "--reg", "rat"]
    words = flags(data, tmp_path, *own, *files(data, ".conll", "test"), "--do_predict")
    results = ner.run(words)
    assert (results["train_samples"], results["eval_samples"], results["test_samples"]) == (60, 20, 21)
    check(tmp_path / "out", results, cases=True)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    scores = [entry["eval_span_f1"] for entry in state["log_history"] if "eval_span_f1" in entry]
    assert state["best_metric"] == max(scores) == results["eval_span_f1"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card


def test_a_model_learns_and_capitals_tell_it_of_words_that_it_never_saw(data, tmp_path):
    learn = ["--num_train_epochs", "12", "--learning_rate", "3e-2", "--no_price"]
    new = write(tmp_path, ".conll", sentences(30, 5, unknown=True), "validation")
    scores = {}
    for cases in ((), ("--case_features",)):
        words = flags(data, tmp_path, *learn, *cases, "--output_dir", str(tmp_path / f"o{len(cases)}"))
        assert ner.run(words)["eval_span_f1"] > 0.9
        words = ["--validation_file", str(new), *files(data, ".conll", "train"), "--do_eval", "--use_cpu"]
        words += [
            "--model_name_or_path",
            str(tmp_path / f"o{len(cases)}"),
            "--output_dir",
            str(tmp_path / f"e{len(cases)}"),
        ]
        scores[len(cases)] = ner.run(words)["eval_span_f1"]
    assert scores[1] > scores[0] + 0.1


def test_every_kind_of_file_is_the_same_data(data, tmp_path):
    losses = set()
    for ending in (".conll", ".json", ".csv", ".tsv", ".parquet"):
        few = ["--max_steps", "2", "--no_price", "--save_strategy", "no", "--output_dir", str(tmp_path / ending[1:])]
        results = ner.run(flags(data, tmp_path, *few, ending=ending))
        losses.add((results["train_loss"], results["eval_loss"]))
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("family", "regularizer", "more"),
    [
        ("bert", "rat", ()),
        ("bert", "fgm + 0.5 * vat", ("--pad_to_max_length", "--max_seq_length", "60")),
        ("roberta", "freelb", ()),
    ],
)
def test_transformers_are_fine_tuned(data, tmp_path, family, regularizer, more):
    model = ["--model_name_or_path", str(data / family), "--reg", regularizer, "--learning_rate", "1e-3"]
    words = flags(data, tmp_path, *model, *files(data, ".conll", "test"), "--do_predict", *more, own=False)
    results = ner.run(words)
    check(tmp_path / "out", results)
    names = AutoConfig.from_pretrained(tmp_path / "out").id2label
    assert names == dict(enumerate(("O", "B-LOC", "I-LOC", "B-PER", "I-PER")))


def test_scores_batch_by_batch_are_those_of_the_split(data, tmp_path):
    few = ["--per_device_eval_batch_size", "3", "--no_price"]
    results = [
        ner.run(flags(data, tmp_path, *few, *more, "--output_dir", str(tmp_path / f"o{len(more)}")))
        for more in ((), ("--batch_eval_metrics",))
    ]
    assert [results[0][f"eval_span_{name}"] for name in ("f1", "recall")] == [
        results[1][f"eval_span_{name}"] for name in ("f1", "recall")
    ]


def test_an_adapter(data, tmp_path):
    model = ["--model_name_or_path", str(data / "bert"), "--lora_r", "2", "--lora_target_modules", "query"]
    assert 0.0 <= ner.run(flags(data, tmp_path, *model, own=False))["eval_span_f1"] <= 1.0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"


def test_a_known_data_set(data, tmp_path):
    (task,) = TAGGED
    (tmp_path / task.folder).mkdir()
    for split, rows in SPLITS.items():
        columns = {"tokens": [words for words, _ in rows]}
        columns["ner_tags"] = [[task.labels.index(tag) for tag in tags] for _, tags in rows]
        Dataset.from_dict(columns).to_parquet(tmp_path / task.folder / f"{split}.parquet")
    words = flags(data, tmp_path, "--dataset_name", "conll2003", "--data_dir", str(tmp_path), "--do_predict")[4:]
    results = ner.run(words)
    assert results["test_samples"] == 21
    assert (tmp_path / "out" / "predict_results_conll2003.txt").is_file()


def test_a_test_file_without_tags_is_answered(data, tmp_path):
    plain = write(tmp_path, ".conll", SPLITS["test"], "test", tagged=False)
    results = ner.run(flags(data, tmp_path, "--test_file", str(plain), "--do_predict"))
    assert not any(name.startswith("test_") for name in results)
    answered, _ = asked_again(tmp_path / "out", SPLITS["test"])
    lines = (tmp_path / "out" / "predict_results.txt").read_text().splitlines()[1:]
    assert lines == [f"{row}\t{' '.join(tags)}" for row, tags in enumerate(answered)]


def weights(folder):
    return load_file(folder / "model.safetensors")


STAGED = ["--dropout", "0", "--save_strategy", "no", "--eval_strategy", "no", "--no_price"]


def test_length_expansion_is_one_training_after_the_other(data, tmp_path):
    """Both by hand: a run on pieces of 2 words, and one that goes on from its model on pieces of 4."""
    ner.run(flags(data, tmp_path, *STAGED, "--train_words", "2:1,4"))
    first = ["--output_dir", str(tmp_path / "first"), "--num_train_epochs", "1", "--train_words", "2"]
    results = ner.run(flags(data, tmp_path, *STAGED, *first))
    assert results["train_samples"] == sum(-(-len(words) // 2) for words, _ in SPLITS["train"])
    assert results["eval_samples"] == 20  # whole sentences
    again = ["--model_name_or_path", str(tmp_path / "first"), "--output_dir", str(tmp_path / "second")]
    again += ["--train_words", "4", "--learning_rate", "1e-3"]
    ner.run(flags(data, tmp_path, *STAGED, *again, own=False))
    wanted, found = weights(tmp_path / "second"), weights(tmp_path / "out")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    before = weights(tmp_path / "first")
    assert not any(torch.equal(before[name], wanted[name]) for name in wanted)


def test_a_run_that_goes_on_leaves_out_the_stages_before(data, tmp_path, capsys):
    staged = ["--train_words", "2:1,4", "--no_price", "--load_best_model_at_end", "False", "--save_total_limit", "2"]
    ner.run(flags(data, tmp_path, *staged))
    out = tmp_path / "out"
    checkpoints = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    shutil.copytree(checkpoints[0], tmp_path / "half" / checkpoints[0].name)
    capsys.readouterr()
    half = ["--output_dir", str(tmp_path / "half"), "--resume_from_checkpoint"]
    ner.run(flags(data, tmp_path, *staged, *half))
    assert "Pieces of 2 words" not in capsys.readouterr().out
    wanted, found = weights(out), weights(tmp_path / "half")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_texts_without_tags_may_help(data, tmp_path):
    plain = write(tmp_path, ".conll", sentences(30, 9), "unlabeled", tagged=False)
    more = ["--unlabeled_file", str(plain), "--model", "lstm", "--semi_supervised", "--pretrain_lm", "--reg", "vat"]
    results = ner.run(flags(data, tmp_path, *more))
    assert np.isfinite(results["train_loss"])
    assert (tmp_path / "out" / "language_model" / "config.json").is_file()


def test_the_built_in_example(tmp_path):
    words = ["--output_dir", str(tmp_path / "out"), "--max_steps", "3", "--reg", "fgm", "--alone", "--use_cpu"]
    results = ner.run(words)
    assert (results["train_samples"], results["eval_samples"]) == (300, 1000)
    assert 0.0 <= results["eval_span_f1"] <= 1.0


def test_compare_takes_it():
    words = "--methods plain --seeds 1 --output_dir o --models lstm some/bert --datasets conll2003 -- ner --do_train"
    experiment = compare.parse(words.split())
    cells = [" ".join(cell.flags) for cell in experiment.cells]
    assert cells == [
        "--dataset_name conll2003 --model lstm",
        "--dataset_name conll2003 --model_name_or_path some/bert",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "textcnn"], "--model 'textcnn' answers for a whole text; of each word there are bilstm, lstm"),
        (["--window", "4"], "--window 4: an odd number of words is needed"),
        (["--train_words", "5,15"], '--train_words \'5,15\': "5" or "5:25,15" is needed'),
        (["--train_words", "0"], "--train_words '0'"),
        (["--train_words", "5:2"], "--train_words '5:2'"),
        (["--vocabulary", "jieba"], "--vocabulary 'jieba': the sentences are cut into words already"),
        (["--pooling", "max"], "--pooling 'max' is of a whole text"),
        (["--do_regression", "false"], "--do_regression False is not for hf-rat ner"),
        (["--streaming", "--max_steps", "3"], "--streaming True is not for hf-rat ner"),
        (["--submission_dir", "d"], "--submission_dir 'd' is not for hf-rat ner"),
        (["--model", "lstm", "--pretrain_lm", "--window", "3"], "--pretrain_lm: a language model reads neither"),
        (
            ["--model", "lstm", "--truncated_bptt", "3"],
            "--truncated_bptt 3 is of a whole text, and each word has a tag",
        ),
        (["--max_seq_length", "2"], "--max_seq_length 2: --validation_file: .* words of row 0 lie beyond it"),
        (
            ["--label_column_name", "ner"],
            "--label_column_name: there is no column 'ner'; the columns are tokens, tags",
        ),
        (["--text_column_names", "tokens,tags"], "the words are in one column"),
        (["--metric_for_best_model", "accuracy"], "the scores of this run are loss, span_f1"),
        (["--dataset_name", "conl2003"], "name two data sets"),
    ],
)
def test_what_cannot_be_is_one_line(data, tmp_path, words, message):
    with pytest.raises(ValueError, match=message) as error:
        ner.run(flags(data, tmp_path, *words))
    assert "\n" not in str(error.value)


def test_flags_of_a_model_of_our_own_are_refused_for_another(data, tmp_path):
    for name in ("--window=3", "--case_features", "--embedding_size=7"):
        words = ["--model_name_or_path", str(data / "bert"), name]
        with pytest.raises(ValueError, match="--model_name_or_path brings its own"):
            ner.run(flags(data, tmp_path, *words, own=False))


@pytest.mark.parametrize(
    ("split", "rows", "message"),
    [
        ("train", [(["a", "b"], ["O", "NN"])], "--train_file: row 0, word 1 has the tag 'NN', which is not IOB"),
        ("train", [(["a"], ["O"])], "every tag in 'tags' is O"),
        ("train", [(["a", "b"], ["B-PER"])], "--train_file: row 0 has 2 words in 'tokens' and 1 tags in 'tags'"),
        ("validation", [(["a"], ["B-FOO"])], "--validation_file: row 0 has the label 'B-FOO', which is outside the"),
        ("validation", [(["a", "b"], ["O"])], "--validation_file: row 0 has 2 words in 'tokens' and 1 tags"),
        ("validation", [([], [])], "--validation_file: row 0 has no words"),
    ],
)
def test_sentences_that_are_wrong_are_one_line(data, tmp_path, split, rows, message):
    wrong = write(tmp_path, ".json", rows, split)
    with pytest.raises(ValueError, match=message) as error:
        ner.run(flags(data, tmp_path, f"--{split}_file", str(wrong)))
    assert "\n" not in str(error.value)


def test_a_data_set_that_is_not_there(tmp_path):
    for name, message in (("conll2003", "conll2003' is not on the Hub"), ("conl2003", "did you mean conll2003")):
        with pytest.raises(ValueError, match=message):
            ner.run(["--dataset_name", name, "--do_train", "--output_dir", str(tmp_path / "out"), "--use_cpu"])

"""What each companion model is to Transformers: found, saved, loaded elsewhere, piped, resized. One row per model."""

import copy
import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_rat.models import HANConfig, RNNConfig, TextCNNConfig

WORDS = ["<pad>", "<unk>", "a", "b", "c", "d", "e", "f", "."]
_SIZES = {"vocab_size": len(WORDS), "embedding_size": 12, "num_labels": 3}
_AWD = {"recurrent_dropouts": {"input": 0.4, "output": 0.4, "dropconnect": 0.5}}


class Row(NamedTuple):
    """A small configuration of a model, and the Auto class that finds it."""

    config: PreTrainedConfig
    auto: type = AutoModelForSequenceClassification


TABLE = {
    "textcnn": Row(TextCNNConfig(**_SIZES, num_filters=7)),
    "textcnn-normalized": Row(TextCNNConfig(**_SIZES, num_filters=7, normalize_embeddings=True)),
    "han": Row(HANConfig(**_SIZES, hidden_size=6, recurrent_dropouts={"variational": 0.2})),
    "han-sentences": Row(HANConfig(**_SIZES, hidden_size=6, sentence_level=True, sentence_separator_token_id=8)),
    "bilstm": Row(RNNConfig(**_SIZES, hidden_size=6, bidirectional=True)),
    "gru": Row(RNNConfig(**_SIZES, cell="gru", hidden_size=6, num_hidden_layers=2, pooling="mean", between="tanh")),
    "rnn-normalized": Row(
        RNNConfig(**_SIZES, cell="rnn", hidden_size=6, pooling="attention", normalize_embeddings=True)
    ),
    "rnn-model": Row(RNNConfig(**_SIZES, hidden_size=6, recurrent_dropouts={"variational": 0.2}), AutoModel),
    "tagger": Row(RNNConfig(**_SIZES, hidden_size=6, bidirectional=True), AutoModelForTokenClassification),
    "language-model": Row(RNNConfig(**_SIZES, hidden_size=12, tie_word_embeddings=True, **_AWD), AutoModelForCausalLM),
}
CLASSIFIERS = [name for name, row in TABLE.items() if row.auto is AutoModelForSequenceClassification]

every_model = pytest.mark.parametrize("name", TABLE)
every_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


def make(name, **settings):
    config, auto = copy.deepcopy(TABLE[name])
    for field, value in settings.items():
        setattr(config, field, value)
    return auto.from_config(config).eval()


def make_batch():
    """Six texts, one of one word and one of none: input_ids, attention_mask (6, 7), padded on the right."""
    ids = torch.tensor([[2, 3, 8, 4, 5, 8, 6], [7, 6, 5, 4, 3, 8, 0], [3, 8, 2, 2, 0, 0, 0], [4, 5, 6, 0, 0, 0, 0]])
    ids = torch.cat([ids, torch.tensor([[5, 0, 0, 0, 0, 0, 0], [0] * 7])])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def answer(model, batch):
    """Logits; of a model without a head its last states."""
    return model(**batch)[0]


def assert_same(found, expected):
    """Equal but for rounding, which depends on where in memory a weight lies."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def labels_of(kind):
    torch.manual_seed(1)
    if kind == "single_label_classification":
        return torch.tensor([0, 1, 2, 0, 1, 2])
    return torch.randint(2, (6, 3)).float() if kind == "multi_label_classification" else torch.randn(6)


# --- saving and loading ------------------------------------------------------------------------------------------


@every_model
def test_save_and_load(name, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path)
    config, again = AutoConfig.from_pretrained(tmp_path), TABLE[name].auto.from_pretrained(tmp_path)
    assert type(config) is type(model.config)
    assert type(again) is type(model)
    assert json.loads(config.to_json_string()) == json.loads(model.config.to_json_string())
    assert_same(answer(again, make_batch()), answer(model, make_batch()))
    assert not again.training
    for field, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[field], weight), field


ELSEWHERE = """
import sys
sys.modules["hf_rat"] = None  # whatever imports it fails
import torch, transformers
for folder, auto in zip(sys.argv[1::2], sys.argv[2::2]):
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    torch.save(model(**torch.load(folder + "/batch.pt"))[0], folder + "/logits.pt")
    if auto == "AutoModelForCausalLM":
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        torch.save(model.generate(**torch.load(folder + "/batch.pt"), max_new_tokens=5), folder + "/words.pt")
    model.train()(**torch.load(folder + "/batch.pt"))[0].sum().backward()
    model.save_pretrained(folder + "/again")
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Each model saved, and loaded by a fresh interpreter that has no hf-rat: name -> (logits here, its folder)."""
    root, found, arguments = tmp_path_factory.mktemp("models"), {}, []
    for name, row in TABLE.items():
        model, folder = make(name), root / name.replace("-", "_")
        model.save_pretrained(folder)
        torch.save(make_batch(), folder / "batch.pt")
        found[name] = (answer(model, make_batch()).detach(), folder)
        arguments += [str(folder), row.auto.__name__]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", ELSEWHERE, *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return found


@pytest.mark.slow
@every_model
def test_load_where_hf_rat_is_not_installed(elsewhere, name):
    logits, folder = elsewhere[name]
    assert_same(torch.load(folder / "logits.pt"), logits)
    # What was saved there is whole again.
    again = TABLE[name].auto.from_pretrained(folder / "again", trust_remote_code=False)
    assert_same(answer(again, make_batch()), logits)
    if TABLE[name].auto is AutoModelForCausalLM:
        assert torch.equal(torch.load(folder / "words.pt"), again.generate(**make_batch(), max_new_tokens=5))
    ours = {path.name for path in folder.glob("*.py")}
    assert ours == {path.name for path in (folder / "again").glob("*.py")}


# --- how weights begin -------------------------------------------------------------------------------------------


@every_model
def test_word_vectors_begin_as_the_configuration_says(name):
    embeddings = make(name, vocab_size=2000, initializer_range=0.3).get_input_embeddings()
    weight = embeddings.weight.detach()
    assert not weight[0].any()
    assert weight[1:].std() == pytest.approx(0.3, rel=0.03)
    assert abs(weight[1:].mean()) < 0.01


@every_model
def test_vectors_that_were_loaded_stay(name, tmp_path):
    model = make(name)
    vectors = torch.randn(len(WORDS), 12)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(vectors)
    model.save_pretrained(tmp_path)
    found = TABLE[name].auto.from_pretrained(tmp_path).get_input_embeddings().weight
    assert torch.equal(found, vectors)


@every_classifier
def test_only_a_missing_head_is_initialised(name, tmp_path):
    model = make(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.save_pretrained(tmp_path)
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=4, ignore_mismatched_sizes=True)
    assert other.classifier.out_features == 4
    bound = other.classifier.in_features**-0.5
    for field, parameter in other.named_parameters():
        if field.startswith("classifier"):
            assert parameter.abs().max() <= bound * 1.01
        else:
            assert (parameter == 7.0).all(), field


@every_model
def test_initialisation_is_reproducible_and_finite(name):
    torch.manual_seed(3)
    first = make(name).state_dict()
    torch.manual_seed(3)
    second = make(name).state_dict()
    for field, value in first.items():
        assert value.isfinite().all(), field
        assert torch.equal(value, second[field]), field


# --- inputs ------------------------------------------------------------------------------------------------------


@every_classifier
def test_padding_and_company_change_nothing(name):
    """Alone and unpadded = in any batch, padded on the right, on the left or in the middle."""
    model, batch = make(name).double(), make_batch()
    right = model(**batch).logits
    left, holes = ({key: torch.zeros(6, 9, dtype=torch.long) for key in batch} for _ in range(2))
    for row, mask in enumerate(batch["attention_mask"].bool()):
        words = batch["input_ids"][row][mask]
        places = torch.randperm(9)[: len(words)].sort().values
        for target, where in ((left, torch.arange(9 - len(words), 9)), (holes, places)):
            target["input_ids"][row, where] = words
            target["attention_mask"][row, where] = 1
        if len(words):
            alone = model(input_ids=words.unsqueeze(0)).logits[0]
            torch.testing.assert_close(alone, right[row])
    holes["input_ids"][holes["attention_mask"] == 0] = 5  # whatever stands at padding
    for padded in (left, holes):
        torch.testing.assert_close(model(**padded).logits, right)


@every_classifier
def test_texts_without_a_word(name):
    model = make(name)
    ids = torch.zeros(2, 4, dtype=torch.long)
    empty = model(input_ids=ids, attention_mask=ids).logits
    assert empty.isfinite().all()
    assert_same(model(**make_batch()).logits[-1:], empty[:1])
    # What a tokenizer makes when all texts are empty.
    assert_same(model(input_ids=torch.zeros(2, 0), attention_mask=torch.zeros(2, 0)).logits, empty)


@every_classifier
def test_nothing_of_padding_is_read(name):
    """NaN at padding reaches neither logits nor gradients."""
    model, batch = make(name).train(), make_batch()
    vectors = model.get_input_embeddings()(batch["input_ids"]).detach()
    vectors[batch["attention_mask"] == 0] = float("nan")
    vectors.requires_grad_()
    ids = {"input_ids": batch["input_ids"]} if model.config.to_dict().get("sentence_level") else {}
    model(**ids, inputs_embeds=vectors, attention_mask=batch["attention_mask"]).logits.sum().backward()
    assert vectors.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@every_classifier
def test_vectors_instead_of_words(name):
    model, batch = make(name), make_batch()
    vectors = model.get_input_embeddings()(batch["input_ids"])
    ids = {"input_ids": batch["input_ids"]} if model.config.to_dict().get("sentence_level") else {}
    given = model(**ids, inputs_embeds=vectors, attention_mask=batch["attention_mask"])
    assert_same(given.logits, model(**batch).logits)
    with pytest.raises(ValueError, match=r"neither was given|inputs_embeds alone"):
        model()
    if not ids:
        with pytest.raises(ValueError, match="both was given"):
            model(**batch, inputs_embeds=vectors)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(6, 6\), expected .*\(6, 7\)"):
        model(batch["input_ids"], batch["attention_mask"][:, 1:])


# --- outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
@every_classifier
def test_losses(name, kind):
    model, batch, labels = make(name), make_batch(), labels_of(kind)
    model = make(name, num_labels=1) if kind == "regression" else model
    outputs = model(**batch, labels=labels)
    if kind == "single_label_classification":
        expected = F.cross_entropy(outputs.logits, labels)
    elif kind == "multi_label_classification":
        expected = F.binary_cross_entropy_with_logits(outputs.logits, labels)
    else:
        expected = F.mse_loss(outputs.logits.squeeze(1), labels)
    torch.testing.assert_close(outputs.loss, expected)
    assert model.config.problem_type == kind
    assert model(**batch).loss is None


@every_model
def test_tuples(name):
    model, batch = make(name), make_batch()
    assert_same(model(**batch, return_dict=False)[0], answer(model, batch))


@every_classifier
def test_pipeline(name, tmp_path):
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")
    model = make(name, id2label={0: "bad", 1: "fair", 2: "good"})
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    pipe = pipeline("text-classification", model=str(tmp_path), device="cpu")
    texts = ["a b . c", "d", "", "f z . a b c d"]
    together, alone = pipe(texts, batch_size=4), [pipe(text)[0] for text in texts]
    for text, one, other in zip(texts, together, alone, strict=True):
        ids = [WORDS.index(word) if word in WORDS else 1 for word in text.split()]
        shares = model(torch.tensor([ids], dtype=torch.long)).logits[0].detach().softmax(0)
        for found in (one, other):
            assert found["score"] == pytest.approx(float(shares.max()), abs=1e-6)
            assert found["label"] == ["bad", "fair", "good"][int(shares.argmax())]


# --- changing a model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [15, 8])
@every_model
def test_resize_token_embeddings(name, count):
    model, batch = make(name, sentence_separator_token_id=7) if "sentences" in name else make(name), make_batch()
    batch["input_ids"][batch["input_ids"] == 8] = 7
    before = answer(model, batch)
    model.resize_token_embeddings(count, mean_resizing=False)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == count
    if "normalized" not in name:  # whose mean and deviation are those of the words there are
        # A language model's logits are one for each word.
        width = min(before.size(-1), count) if name == "language-model" else before.size(-1)
        torch.testing.assert_close(answer(model, batch)[..., :width], before[..., :width])
    batch["input_ids"][0, 0] = count - 1
    assert answer(model.train(), batch).isfinite().all()


@every_model
def test_deepcopy_does_not_share(name):
    model, batch = make(name), make_batch()
    twin = copy.deepcopy(model)
    expected = answer(model, batch)
    assert_same(answer(twin, batch), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same(answer(model, batch), expected)


@every_model
def test_autocast(name):
    model, batch = make(name), make_batch()
    expected = answer(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        logits = answer(model, batch)
        logits.float().square().sum().backward()
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.02)
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
    )


@every_model
def test_half_precision_weights(name, tmp_path):
    model, batch = make(name), make_batch()
    model.save_pretrained(tmp_path)
    half = TABLE[name].auto.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(answer(half, batch).float(), answer(model, batch), rtol=0.1, atol=0.05)


@every_model
def test_train_and_eval(name):
    model, batch = make(name), make_batch()
    before = answer(model, batch)
    torch.manual_seed(5)
    first = answer(model.train(), batch)
    assert not torch.equal(first, answer(model, batch)), "no dropout in training"
    assert_same(answer(model.eval(), batch), before)


@every_classifier
def test_the_stock_trainer_counts_accumulated_batches_right(name, tmp_path):
    """Four batches accumulated, then one of all: the same loss is logged (the Trainer's own scaling is off)."""
    batch = make_batch() | {"labels": labels_of("single_label_classification")}
    rows = [{key: value[i] for key, value in batch.items()} for i in range(4)]
    logged = []
    for size in (4, 1):
        torch.manual_seed(0)
        model = make(name, classifier_dropout=0.0)
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                module.dropouts = type(module.dropouts)()
        quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_steps=1,
            **quiet,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        logged.append(trainer.state.log_history[0])
    assert logged[1]["loss"] == pytest.approx(logged[0]["loss"], rel=1e-4)
    assert logged[1]["grad_norm"] == pytest.approx(logged[0]["grad_norm"], rel=1e-3)

"""`class MyTrainer(RegularizationMixin, SentenceTransformerTrainer)` with the real package, and its steps by hand."""

from dataclasses import dataclass
from functools import partial

import pytest
import tiny
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import BertModel, PreTrainedTokenizerFast

sentence_transformers = pytest.importorskip("sentence_transformers")

from sentence_transformers.sentence_transformer import losses, modules  # noqa: E402

from hf_rat import (  # noqa: E402
    RegularizationMixin,
    RegularizedTrainingArguments,
    adversarial_dropout,
    fgm,
    fgsm,
    freelb,
    momentum_sam,
    neftune,
    pgd,
    plain,
    rat,
    rdrop,
    sam,
    smart,
    vat,
)
from hf_rat.passes.sites import ColumnsSite  # noqa: E402

EPSILON = 0.5


class MyTrainer(RegularizationMixin, sentence_transformers.SentenceTransformerTrainer):
    """What a user writes."""


def save_tiny_bert(path):
    """A tiny BERT without dropout, and a tokenizer to which the word `w7` is token 7."""
    words = {"<pad>": tiny.PAD, "<unk>": 1, **{f"w{number}": number for number in range(2, tiny.VOCABULARY)}}
    text = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    text.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=text, pad_token="<pad>", unk_token="<unk>").save_pretrained(path)
    torch.manual_seed(0)
    BertModel(tiny._config("bert", 0.0)).save_pretrained(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    save_tiny_bert(path)
    return str(path)


def sentence_model(folder):
    words = modules.Transformer(folder)
    return sentence_transformers.SentenceTransformer(modules=[words, modules.Pooling(16)], device="cpu")


COLUMNS = {"pairs": ("one", "two"), "triplets": ("anchor", "positive", "negative")}
SIZES = {"pairs": 4, "triplets": 8}
"""Of a micro-batch. The package shuffles rows, and who is with whom matters to triplets: theirs are all together."""


def texts(kind, count=8):
    """For each row, the tokens of each column, of unequal lengths."""
    generator = torch.Generator().manual_seed(0)

    def draw(length):
        return torch.randint(3, tiny.VOCABULARY, (length,), generator=generator).tolist()

    return [[draw(2 + (3 * row + 2 * column) % 5) for column in range(len(COLUMNS[kind]))] for row in range(count)]


def scores(count=8):
    return [0.1 * (row % 7) for row in range(count)]


def trainer(folder, kind, out, regularizer=None, loss=None, cls=MyTrainer, **settings):
    model = sentence_model(folder)
    rows = [
        dict(zip(COLUMNS[kind], (" ".join(f"w{token}" for token in tokens) for tokens in row), strict=True))
        for row in texts(kind)
    ]
    if kind == "pairs":
        rows = [{**row, "score": score} for row, score in zip(rows, scores(), strict=True)]
    usual = losses.CosineSimilarityLoss if kind == "pairs" else losses.MultipleNegativesRankingLoss
    simple = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    step = {"per_device_train_batch_size": SIZES[kind], "max_steps": 1, "logging_steps": 1}
    step["gradient_accumulation_steps"] = 8 // SIZES[kind]
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "output_dir": str(out)}
    return cls(
        model=model,
        args=sentence_transformers.SentenceTransformerTrainingArguments(**{**simple, **step, **quiet, **settings}),
        train_dataset=Dataset.from_list(rows),
        loss=(loss or usual)(model),
        **({} if regularizer is None else {"regularizer": regularizer}),
    )


def logged(one):
    one.train()
    return next(log for log in one.state.log_history if "loss" in log)


def test_an_average_of_the_weights(folder, tmp_path):
    """Evaluated, saved as the model, and resumed from, as with the Trainer itself."""
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    averaging = partial(MyTrainer, average="ema(0.5)")
    one = trainer(folder, "pairs", tmp_path / "a", fgm(epsilon=EPSILON), cls=averaging, **settings)
    name = "0.auto_model.encoder.layer.0.output.dense.weight"
    name = next(key for key in one.model.state_dict() if key.endswith(name.split("model.")[1]))
    expected = one.model.state_dict()[name].clone()
    one.train()
    for step in (1, 2, 3):
        raw = load_file(tmp_path / "a" / f"checkpoint-{step}" / "raw_model.safetensors")
        expected = 0.5 * expected + 0.5 * raw[name]
    torch.testing.assert_close(one.model.state_dict()[name], expected)
    assert not torch.equal(expected, raw[name])
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "a" / "checkpoint-3"), device="cpu")
    torch.testing.assert_close(loaded.state_dict()[name], expected)
    again = trainer(folder, "pairs", tmp_path / "b", fgm(epsilon=EPSILON), cls=averaging, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    assert torch.equal(again.model.state_dict()[name], one.model.state_dict()[name])


def step_by_hand(folder, kind, perturbed):
    """(losses, gradients of BERT) of a step, with FGM on top if `perturbed`; without the package."""
    bert, total, size = BertModel.from_pretrained(folder).train(), {}, SIZES[kind]
    for at in range(0, 8, size):
        rows = texts(kind)[at : at + size]
        columns = []
        for column in range(len(COLUMNS[kind])):
            longest = max(len(row[column]) for row in rows)
            ids = torch.tensor([row[column] + [tiny.PAD] * (longest - len(row[column])) for row in rows])
            columns.append((bert.get_input_embeddings()(ids), (ids != tiny.PAD).long()))

        def loss_of(moves, columns=columns, at=at):
            sentences = []
            for (words, mask), move in zip(columns, moves, strict=True):
                states = bert(inputs_embeds=words + move, attention_mask=mask).last_hidden_state
                sentences.append((states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))
            if kind == "pairs":
                return F.mse_loss(F.cosine_similarity(*sentences), torch.tensor(scores()[at : at + size]))
            anchors, *others = (F.normalize(sentence, dim=-1) for sentence in sentences)
            return F.cross_entropy(20 * anchors @ torch.cat(others).T, torch.arange(size))

        clean = loss_of([0.0] * len(columns))
        parts = {"task": clean}
        if perturbed:
            slopes = torch.autograd.grad(clean, [words for words, _ in columns], retain_graph=True)
            slopes = [g * mask.unsqueeze(-1) for g, (_, mask) in zip(slopes, columns, strict=True)]
            # One norm for each row, over all of its columns.
            length = torch.stack([g.square().sum((1, 2)) for g in slopes]).sum(0).sqrt().view(-1, 1, 1)
            parts["adversarial_task"] = loss_of([EPSILON * g / length for g in slopes])
        for name, value in parts.items():
            total[name] = total.get(name, 0.0) + value * size / 8
    sum(total.values()).backward()
    return {name: value.item() for name, value in total.items()}, {n: p.grad for n, p in bert.named_parameters()}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("regularizer", [plain(), fgm(epsilon=EPSILON)], ids=["plain", "fgm"])
def test_a_step_by_hand(regularizer, kind, folder, tmp_path):
    one = trainer(folder, kind, tmp_path, regularizer)
    bert = one.model.transformers_model
    before = {name: parameter.detach().clone() for name, parameter in bert.named_parameters()}
    log = logged(one)
    expected, gradients = step_by_hand(folder, kind, perturbed=regularizer != plain())
    assert log["loss"] == pytest.approx(sum(expected.values()), rel=1e-4)
    if len(expected) > 1:
        assert expected["adversarial_task"] > 1.05 * expected["task"]
        for name, value in expected.items():
            assert log[f"loss_{name}"] == pytest.approx(value, rel=1e-4), name
    scale = max(float(g.abs().max()) for g in gradients.values() if g is not None)
    for name, parameter in bert.named_parameters():
        theirs = torch.zeros_like(parameter) if gradients[name] is None else gradients[name]
        ours = (before[name] - parameter.detach()) / 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4 * scale, msg=name)


@pytest.mark.parametrize(
    "regularizer",
    [fgsm(epsilon=0.05), pgd(epsilon=0.5, step=0.3, steps=2), freelb(epsilon=0.5, step=0.3, steps=3, start=0.01)],
    ids=["fgsm", "pgd", "freelb"],
)
@pytest.mark.parametrize("kind", COLUMNS)
def test_what_climbs_climbs(kind, regularizer, folder, tmp_path):
    clean = logged(trainer(folder, kind, tmp_path, plain()))["loss"]
    log = logged(trainer(folder, kind, tmp_path, regularizer))
    assert log["loss_adversarial_task"] > 1.02 * clean
    assert log["loss"] == pytest.approx(log.get("loss_task", 0.0) + log["loss_adversarial_task"], rel=1e-5)


@pytest.mark.parametrize("plain_table", [True, False])
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_relative_epsilon_is_a_share_of_all_columns_together(kind, plain_table, folder, tmp_path):
    one = trainer(folder, kind, tmp_path, fgm(epsilon=0.3, unit="relative"))
    words = one.model.transformers_model.get_input_embeddings()
    if not plain_table:  # one that only a forward of the model can tell
        words.__class__ = type(
            "Own", (type(words),), {"forward": lambda self, ids: super(type(self), self).forward(ids)}
        )
    site, batch = ColumnsSite(one.model), {}
    for column, name in enumerate(COLUMNS[kind]):
        rows = [row[column] for row in texts(kind)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [tiny.PAD] * (longest - len(row)) for row in rows])
        batch |= {f"{name}_input_ids": ids, f"{name}_attention_mask": (ids != tiny.PAD).long()}
    by_hand = [torch.cat([words.weight[column] for column in row]).norm() for row in texts(kind)]
    torch.testing.assert_close(site.geometry(batch).own_length.flatten(), torch.stack(by_hand), rtol=1e-5, atol=1e-6)
    site.close()
    log = logged(one)
    assert log["loss_adversarial_task"] > 1.02 * log["loss_task"]


def test_noise_is_there(folder, tmp_path):
    clean = logged(trainer(folder, "triplets", tmp_path, plain()))["loss"]
    log = logged(trainer(folder, "triplets", tmp_path, neftune(epsilon=5)))
    assert log["loss"] == log["loss_noisy_task"] != pytest.approx(clean, rel=1e-2)


def test_sam_over_a_step_by_hand(folder, tmp_path):
    """The gradient of both micro-batches at weights moved by their slope, written into a model of its own."""
    slopes = {name: g for name, g in step_by_hand(folder, "pairs", False)[1].items() if g is not None}
    norm = torch.stack([g.square().sum() for g in slopes.values()]).sum().sqrt()
    moved = BertModel.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if name in slopes:
                parameter.add_(EPSILON * slopes[name] / norm)
    moved.save_pretrained(tmp_path / "moved")
    expected, gradients = step_by_hand(str(tmp_path / "moved"), "pairs", False)
    one = trainer(folder, "pairs", tmp_path, sam(epsilon=EPSILON, over="step"))
    bert = one.model.transformers_model
    before = {name: parameter.detach().clone() for name, parameter in bert.named_parameters()}
    log = logged(one)
    assert log["loss_adversarial_task"] == pytest.approx(expected["task"], rel=1e-4)
    for name, parameter in bert.named_parameters():
        if name in slopes:
            torch.testing.assert_close(before[name] - parameter, 0.1 * gradients[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("regularizer", [sam(), momentum_sam()], ids=str)
def test_a_loss_that_runs_the_model_again_in_the_backward_is_refused_at_moved_weights(regularizer, folder, tmp_path):
    def cached(model):
        return losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)

    with pytest.raises(ValueError, match="is in the graph of its loss") as error:
        trainer(folder, "triplets", tmp_path, regularizer, cached).train()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("regularizer", "named"),
    [
        (rdrop(), "rdrop.*compares or repeats predictions.*use one of fgm"),
        (rat(epsilon=0.1), "rat.*compares or repeats predictions"),
        (rat(epsilon=0.1, alpha=0.0), "rat.*compares or repeats predictions"),
        (vat(), "vat.*compares or repeats"),
        (smart(), "smart.*compares or repeats"),
        (adversarial_dropout(), "adversarial_dropout.*compares or repeats"),
        (fgm(site="0.model.encoder"), "elsewhere than in its words"),
    ],
    ids=str,
)
def test_what_has_no_meaning_without_predictions_is_refused(regularizer, named, folder, tmp_path):
    with pytest.raises(ValueError, match=named) as error:
        trainer(folder, "pairs", tmp_path, regularizer)
    assert "\n" not in str(error.value)


def test_a_cross_encoder_is_refused(folder, tmp_path):
    class MyCrossEncoderTrainer(RegularizationMixin, sentence_transformers.CrossEncoderTrainer):
        pass

    model = sentence_transformers.CrossEncoder(folder, num_labels=1, device="cpu")
    arguments = sentence_transformers.CrossEncoderTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    rows = Dataset.from_list([{"one": "w4", "two": "w5", "label": 1.0}])
    with pytest.raises(ValueError, match=r"fgm.* with MyCrossEncoderTrainer.*only SentenceTransformerTrainer"):
        MyCrossEncoderTrainer(model, arguments, train_dataset=rows, regularizer=fgm(epsilon=EPSILON))


def test_a_loss_in_mini_batches_is_refused(folder, tmp_path):
    def cached(model):
        return losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)

    with pytest.raises(RuntimeError, match=r"column.*not in mini-batches as the cached losses"):
        trainer(folder, "triplets", tmp_path, fgm(epsilon=EPSILON), cached).train()


def matryoshka(model):
    return losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), [16, 8])


def spread_out(model):
    return losses.GlobalOrthogonalRegularizationLoss(model)


@pytest.mark.parametrize("loss", [matryoshka, spread_out])
def test_task_loss_and_components_are_those_of_the_package(loss, folder, tmp_path):
    stock = logged(trainer(folder, "triplets", tmp_path, None, loss, sentence_transformers.SentenceTransformerTrainer))
    ours = logged(trainer(folder, "triplets", tmp_path, fgm(epsilon=EPSILON), loss))
    assert ours["loss_task"] == pytest.approx(stock["loss"], rel=1e-4)
    names = set(stock) - {"loss", "grad_norm", "learning_rate", "epoch", "step"}
    assert bool(names) == (loss is spread_out)
    for name in names:
        assert ours[name] == pytest.approx(stock[name], rel=1e-3), name


def test_the_card_is_that_of_both(folder, tmp_path):
    one = trainer(folder, "pairs", tmp_path, fgm(epsilon=EPSILON))
    one.train()
    one.create_model_card()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- sentence-transformers" in card
    assert "- hf-rat" in card
    assert repr(fgm(epsilon=EPSILON)) in card


def test_arguments_of_both(folder, tmp_path):
    @dataclass
    class Arguments(sentence_transformers.SentenceTransformerTrainingArguments, RegularizedTrainingArguments):
        pass

    model = sentence_model(folder)
    one = MyTrainer(
        model=model,
        args=Arguments(output_dir=str(tmp_path), use_cpu=True, reg="fgm", reg_epsilon=0.3),
        train_dataset=Dataset.from_list([{"one": "w4", "two": "w5", "score": 1.0}]),
        loss=losses.CosineSimilarityLoss(model),
    )
    assert one.regularizer == fgm(epsilon=0.3)

"""Models and losses of other people: which kind of task they are, and what is then compared and averaged."""

import logging

import pytest
import runs
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel, Trainer, Wav2Vec2Config, Wav2Vec2ForCTC
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, RegularizedTrainer, RegularizedTrainingArguments, fgm, parse, plain, rdrop, vat
from hf_rat.passes.problems import PROBLEMS

STEP = {"max_steps": 1, "train_sampling_strategy": "sequential"}


def bernoulli(p, q):
    """1/2 [KL(p || q) + KL(q || p)] of two probabilities."""
    kl = lambda a, b: a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()  # noqa: E731
    return (kl(p, q) + kl(q, p)) / 2


def categorical(z, w):
    p, q = z.softmax(-1), w.softmax(-1)
    return ((p - q) * (p / q).log()).sum(-1) / 2


def two_passes(model, batch):
    """(task loss, logits of the one, logits of the other) of two dropout passes as one doubled batch."""
    twice = {name: torch.cat([value, value]) for name, value in batch.items()}
    torch.manual_seed(1)
    outputs = model(**twice)
    return outputs.loss.item(), *outputs.logits.detach().double().chunk(2)


def rdrop_of(model, batch, **how):
    torch.manual_seed(1)
    regularization = Regularization(rdrop(alpha=1.0), model, **how)
    named = regularization.backward(batch)
    return {name: value.item() for name, value in named.items()}, regularization.weighting.taken


# -- losses that know no label but those of the task -----------------------------------------------------------------


class Tagger(nn.Module):
    """A model and a loss that index with their labels: a linear chain, or a cross-entropy that ignores 0."""

    def __init__(self, loss="crf", evaluates=True):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.dropout, self.output = nn.Embedding(20, 8), nn.Dropout(0.2), nn.Linear(8, 4)
        self.transitions = nn.Parameter(torch.randn(4, 4))
        self.kind, self.evaluates = loss, evaluates

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, labels=None):
        assert labels is None or self.evaluates or self.training, "this loss is for training"
        z = self.output(self.dropout(self.embedding(input_ids)))
        return SequenceClassifierOutput(loss=None if labels is None else getattr(self, self.kind)(z, labels), logits=z)

    def crf(self, z, labels):
        paths = z.gather(2, labels.unsqueeze(2)).squeeze(2).sum(1)
        paths = paths + self.transitions[labels[:, :-1], labels[:, 1:]].sum(1)
        alpha = z[:, 0]
        for t in range(1, z.shape[1]):
            alpha = z[:, t] + torch.logsumexp(alpha.unsqueeze(2) + self.transitions, 1)
        return (torch.logsumexp(alpha, 1) - paths).mean()

    def ignores_0(self, z, labels):
        assert ((labels >= 0) & (labels < 4)).all()
        return F.cross_entropy(z.flatten(0, 1), labels.flatten(), ignore_index=0)

    def next_tags(self, z, labels):
        assert ((labels >= 0) & (labels < 4)).all()
        return F.cross_entropy(z[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def sentences(count=8):
    generator = torch.Generator().manual_seed(3)
    draw = lambda high: torch.randint(high, (count, 6), generator=generator)  # noqa: E731
    return {"input_ids": draw(20), "labels": draw(4)}


def rows_of(batch):
    return [{name: value[i].tolist() for name, value in batch.items()} for i in range(len(batch["labels"]))]


def collate(rows):
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("loss", ["crf", "ignores_0", "next_tags"])
def test_plain_is_the_stock_trainer(loss):
    options = {"train_dataset": rows_of(sentences()), "data_collator": collate}
    how = {"options": options, "per_device_train_batch_size": 8, **STEP}
    ours, stock = (
        runs.run("plain", kind=kind, model=Tagger(loss), **how).logs for kind in (RegularizedTrainer, Trainer)
    )
    assert ours[0]["loss"] == pytest.approx(stock[0]["loss"], rel=1e-6)
    assert ours[0]["grad_norm"] == pytest.approx(stock[0]["grad_norm"], rel=1e-5)


def test_plain_runs_nothing_but_its_training_passes():
    model, passes = Tagger(evaluates=False), []
    model.register_forward_hook(lambda *_: passes.append(model.training))
    Regularization(plain(), model).backward(sentences())
    assert passes == [True]


@pytest.mark.parametrize(
    ("loss", "kind"),
    [("crf", "token_classification"), ("ignores_0", "token_classification"), ("next_tags", "causal_lm")],
)
def test_whether_labels_are_shifted_is_told_by_labels_of_the_batch(loss, kind):
    model, batch = Tagger(loss), sentences()
    named, taken = rdrop_of(model, batch)
    task, z, w = two_passes(model, batch)
    apart = categorical(z, w)
    assert taken.problem == kind
    assert named["task"] == pytest.approx(task, rel=1e-5)
    assert named["consistency"] == pytest.approx(
        (apart[:, :-1] if kind == "causal_lm" else apart).mean().item(), rel=1e-4
    )


@pytest.mark.parametrize("loss", ["crf", "ignores_0", "next_tags"])
@pytest.mark.parametrize("name", ["fgm", "vat", "rat", "freelb", "smart"])
def test_other_recipes_train_them_too(name, loss):
    named = Regularization(parse(name), Tagger(loss)).backward(sentences())
    assert all(torch.isfinite(value) and value > 0 for part, value in named.items() if part != "proximal")


def test_labels_that_are_all_alike_tell_nothing_yet():
    model = Tagger("next_tags")
    regularization = Regularization(rdrop(), model)
    regularization.backward({**sentences(), "labels": torch.ones(8, 6, dtype=torch.long)})
    regularization.backward(sentences())
    assert regularization.weighting.taken.problem == "causal_lm"


def test_a_loss_that_cannot_be_asked_has_a_way_out():
    with pytest.raises(ValueError, match=r"Tagger cannot be told.*this loss is for training.*problem=") as error:
        Regularization(rdrop(), Tagger(evaluates=False)).backward(sentences())
    assert "\n" not in str(error.value)
    for problem in ("token_classification", "crf"):
        named, taken = rdrop_of(Tagger(evaluates=False), sentences(), problem=problem)
        assert named["consistency"] == pytest.approx(rdrop_of(Tagger(), sentences())[0]["consistency"], rel=1e-5)
        assert taken.because == "as given"


def test_a_loss_of_one_number_for_each_sequence_counts_by_examples():
    """3 long and 5 short sentences: their labels are another number than they are."""
    long, short = sentences(3), {name: value[:, :3] for name, value in sentences(5).items()}
    model = Tagger()
    model.dropout.p = 0.0
    expected = {}
    for problem in ("crf", "token_classification"):
        regularization = Regularization(plain(), model, problem=problem)
        counts = [regularization.count_labels(part) for part in (long, short)]
        items = sum(counts)
        expected[problem] = [int(count) for count in counts]
        named = [regularization.backward(part, accumulation=2, num_labels=items)["task"] for part in (long, short)]
        by_hand = sum(n * model(**part).loss for n, part in zip(counts, (long, short), strict=True)) / items
        assert float(sum(named) / 2) == pytest.approx(by_hand.item(), rel=1e-5)
    assert expected == {"crf": [3, 5], "token_classification": [18, 15]}


# -- what one number for each example is -----------------------------------------------------------------------------


class Scorer(nn.Module):
    """Without a config. The task loss is any function of (logits, labels)."""

    def __init__(self, loss, width=1, flat=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.dropout, self.output = nn.Embedding(20, 8), nn.Dropout(0.2), nn.Linear(8, width)
        self.loss, self.flat = loss, flat

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, labels=None):
        z = self.output(self.dropout(self.embedding(input_ids)).mean(1))
        z = z.squeeze(-1) if self.flat else z
        return SequenceClassifierOutput(loss=None if labels is None else self.loss(z, labels), logits=z)


def bce(z, labels):
    return F.binary_cross_entropy_with_logits(z.reshape(labels.shape), labels.float())


def mse(z, labels):
    return F.mse_loss(z.reshape(labels.shape), labels.float())


def odd(z, labels):
    """No loss that anyone has heard of."""
    return (z.reshape(labels.shape) - labels).abs().pow(1.5).mean() / 3


def square(z, w):
    return (z - w).square()


def sigmoids(z, w):
    return bernoulli(z.sigmoid(), w.sigmoid())


BITS, SHARES, SCORES = (
    torch.tensor([0, 1, 1, 0]),
    torch.tensor([0.1, 0.9, 0.5, 0.3]),
    torch.tensor([0.5, 3.0, -1.0, 2]),
)
SEVERAL = torch.tensor([[0.0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
SOFT = torch.tensor([[0.2, 0.5, 0.3], [1, 0, 0], [0, 1, 0], [0.6, 0.2, 0.2]])
MULTI, REGRESSION, SINGLE = "multi_label_classification", "regression", "single_label_classification"


@pytest.mark.parametrize(
    ("loss", "labels", "width", "kind", "apart", "because"),
    [
        (bce, BITS, 1, MULTI, sigmoids, "binary cross-entropy"),
        (bce, BITS.float(), 1, MULTI, sigmoids, "binary cross-entropy"),
        (bce, BITS.view(4, 1), 1, MULTI, sigmoids, "binary cross-entropy"),
        (bce, SHARES, 1, MULTI, sigmoids, "binary cross-entropy"),
        (mse, SHARES, 1, REGRESSION, square, "mean squared error"),
        (mse, BITS, 1, REGRESSION, square, "mean squared error"),
        (mse, SCORES, 1, REGRESSION, square, "mean squared error"),
        (odd, SCORES, 1, REGRESSION, square, "outside of"),
        (odd, BITS, 1, MULTI, sigmoids, "labels of 0 and 1 for 1 logit"),
        (odd, BITS + 3, 1, REGRESSION, square, "outside of"),
        (bce, SEVERAL, 3, MULTI, sigmoids, "binary cross-entropy"),
        (bce, SEVERAL.long(), 3, MULTI, sigmoids, "binary cross-entropy"),
        (odd, SEVERAL, 3, MULTI, sigmoids, "labels of 0 and 1"),
        (mse, 5 * SEVERAL, 3, REGRESSION, square, "mean squared error"),
        (F.cross_entropy, SOFT, 3, SINGLE, categorical, "cross-entropy"),
        (F.cross_entropy, BITS, 3, SINGLE, categorical, "one integer label"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flat", [False, True])
def test_one_pass_tells_the_kind(loss, labels, width, kind, apart, because, flat):
    model, batch = Scorer(loss, width, flat), {**sentences(4), "labels": labels}
    named, taken = rdrop_of(model, batch)
    task, z, w = two_passes(model, batch)
    assert (taken.problem, because in taken.because) == (kind, True), taken
    assert named["task"] == pytest.approx(task, rel=1e-5)
    assert named["consistency"] == pytest.approx(apart(z, w).mean().item(), rel=1e-4)
    assert named["consistency"] > 1e-6


@pytest.mark.parametrize(("labels", "width"), [(SHARES, 1), (SOFT, 3)])
def test_two_plausible_kinds_are_refused(labels, width):
    model, batch = Scorer(odd, width), {**sentences(4), "labels": labels}
    with pytest.raises(ValueError, match=r"unclear.*regression; give problem= \(--reg_problem\)") as error:
        Regularization(rdrop(), model).backward(batch)
    assert "\n" not in str(error.value)
    for problem, apart in ((MULTI, sigmoids), (REGRESSION, square)):
        _, z, w = two_passes(model, batch)
        assert rdrop_of(model, batch, problem=problem)[0]["consistency"] == pytest.approx(
            apart(z, w).mean().item(), rel=1e-4
        )
    assert Regularization(fgm(), model).backward(batch)  # which compares nothing


def test_labels_that_contradict_what_was_taken_are_refused():
    regularization = Regularization(rdrop(), Scorer(odd))
    regularization.backward({**sentences(4), "labels": BITS.float()})
    with pytest.raises(ValueError, match="now is the other one; give problem="):
        regularization.backward({**sentences(4), "labels": SCORES})


class WithConfig(PreTrainedModel):
    """One logit and a binary cross-entropy, under a config whose default is two labels, or says one."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.inside = Scorer(bce)

    def get_input_embeddings(self):
        return self.inside.embedding

    def forward(self, input_ids, labels=None):
        return self.inside(input_ids, labels)


@pytest.mark.parametrize("config", [{}, {"num_labels": 1}])
def test_a_config_does_not_outweigh_what_is_seen(config):
    model, batch = WithConfig(PretrainedConfig(**config)).train(), {**sentences(4), "labels": BITS}
    named, _ = rdrop_of(model, batch)
    _, z, w = two_passes(model, batch)
    assert named["consistency"] == pytest.approx(sigmoids(z, w).mean().item(), rel=1e-4)


def test_vat_climbs_the_right_divergence():
    named = Regularization(vat(epsilon=1.0), Scorer(bce)).backward({**sentences(4), "labels": BITS})
    assert named["smoothness"] > 1e-5  # 0 as a softmax over one logit


# -- where it is given and told --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"options": {"problem": REGRESSION}}, {"reg_problem": REGRESSION}])
def test_the_trainer_is_given_it_and_says_so_first(how, caplog):
    options = {"train_dataset": rows_of({**sentences(4), "labels": BITS.float()}), "data_collator": collate}
    options |= how.pop("options", {})
    with caplog.at_level(logging.INFO, "hf_rat"):
        told = runs.run("rdrop", model=Scorer(bce), options=options, log_level="info", **STEP, **how)
    first = next(record.getMessage() for record in caplog.records if record.name.startswith("hf_rat"))
    assert "kind of task: regression (as given)" in first
    assert told.logs[0]["loss_consistency"] > 0


def test_the_first_line_says_how_it_was_found(caplog):
    options = {"train_dataset": rows_of({**sentences(4), "labels": BITS}), "data_collator": collate}
    with caplog.at_level(logging.INFO, "hf_rat"):
        runs.run("rdrop", model=Scorer(bce), options=options, log_level="info", **STEP)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("hf_rat.trainer.announcement")]
    assert lines[0].startswith("Regularizer rdrop(")
    # Only a pass can tell, and the price is told before it.
    assert lines[1].startswith(
        "After the first batch; kind of task: multi_label_classification (the task loss is the bin"
    )
    assert len(lines) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Regularization(rdrop(), Scorer(bce), problem="ranking"),
        lambda: RegularizedTrainingArguments("x", reg_problem="ranking"),
        lambda: RegularizedTrainer(Scorer(bce), problem="ranking"),
    ],
)
def test_an_unknown_kind_is_refused_with_those_known(make):
    with pytest.raises(ValueError, match="problem='ranking' is no kind of task") as error:
        make()
    assert "\n" not in str(error.value)
    assert all(problem in str(error.value) for problem in PROBLEMS)


def test_it_is_said_once(tmp_path):
    args = RegularizedTrainingArguments(str(tmp_path), reg_problem="crf", use_cpu=True)
    with pytest.raises(ValueError, match=r"both problem= and reg_problem .*\(crf, ctc\)"):
        RegularizedTrainer(Scorer(bce), args, problem="ctc")


# -- sequences that are aligned by the loss --------------------------------------------------------------------------


def speech(reduction, dropout=0.0):
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=8, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_kernel=(5, 3), conv_stride=(4, 2), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        ctc_loss_reduction=reduction, mask_time_prob=0.0, layerdrop=0.0, feat_extract_norm="layer",
        hidden_dropout=dropout, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0,
        final_dropout=0.0,
    )  # fmt: skip
    return Wav2Vec2ForCTC(config).train()


def sounds(count=8):
    """Of one length, with 1 to 7 symbols."""
    generator = torch.Generator().manual_seed(5)
    return [
        {
            "input_values": torch.randn(160, generator=generator),
            "labels": torch.randint(1, 8, (1 + i % 7,), generator=generator),
        }
        for i in range(count)
    ]


def heard(rows):
    labels = nn.utils.rnn.pad_sequence([row["labels"] for row in rows], True, -100)
    values = torch.stack([row["input_values"] for row in rows])
    return {"input_values": values, "attention_mask": torch.ones_like(values).long(), "labels": labels}


SITE = "wav2vec2.feature_projection"


@pytest.mark.filterwarnings("ignore:.*has no dropout")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("expression", ["plain", "rdrop", f"fgm(site='{SITE}.projection')"])
def test_8_is_4_times_2_and_1_times_8(expression, reduction):
    """A step is the loss that the whole batch has: the mean, or the sum, over its examples."""
    logs = [
        runs.run(
            expression,
            model=speech(reduction),
            options={"train_dataset": sounds(), "data_collator": heard},
            per_device_train_batch_size=8 // parts,
            gradient_accumulation_steps=parts,
            max_steps=1,
            train_sampling_strategy="sequential",
        ).logs[0]
        for parts in (1, 2, 8)
    ]
    with torch.no_grad():
        whole = speech(reduction)(**heard(sounds())).loss.item()
    name = "loss" if expression == "plain" else "loss_task"
    for log in logs:
        assert log[name] == pytest.approx(whole, rel=1e-5)
        assert log["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_passes_are_compared_over_the_frames_of_each_sound(reduction):
    model, batch = speech(reduction, 0.2), heard(sounds(4))
    batch["attention_mask"][1:, 120:] = 0
    batch["attention_mask"][2:, 96:] = 0
    named, taken = rdrop_of(model, batch)
    task, z, w = two_passes(model, batch)
    frames = model._get_feat_extract_output_lengths(batch["attention_mask"].sum(1)).tolist()
    assert len(set(frames)) == 3
    apart = [categorical(z[i, :n], w[i, :n]).mean().item() for i, n in enumerate(frames)]
    examples = 4 if reduction == "sum" else 1  # a sum over examples stays one, and alpha means the same beside it
    assert taken.problem == "ctc"
    assert named["task"] == pytest.approx(task / (2 if reduction == "sum" else 1), rel=1e-4)
    assert named["consistency"] == pytest.approx(examples * sum(apart) / 4, rel=1e-4)


class Aligned(nn.Module):
    """Frames of another number than labels, by nobody's class."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.output, self.dropout = nn.Linear(3, 8), nn.Dropout(0.2)

    def forward(self, features, labels=None):
        z = self.output(self.dropout(features))
        loss = None
        if labels is not None:
            lengths = (labels != -100).sum(1)
            frames = torch.full((len(z),), z.shape[1])
            loss = F.ctc_loss(z.log_softmax(-1).transpose(0, 1), labels.clamp(min=0), frames, lengths)
        return SequenceClassifierOutput(loss=loss, logits=z)


@pytest.mark.parametrize("expression", ["plain", "rdrop"])
def test_labels_that_fit_no_other_axis_are_no_labels_by_position(expression):
    rows = [{"features": torch.randn(20, 3, generator=torch.Generator().manual_seed(i)), **row}
            for i, row in enumerate(sounds())]  # fmt: skip

    def collated(some):
        labels = nn.utils.rnn.pad_sequence([row["labels"] for row in some], True, -100)
        return {"features": torch.stack([row["features"] for row in some]), "labels": labels}

    model = Aligned()
    model.dropout.p = 0.0 if expression == "plain" else 0.2
    how = {"options": {"train_dataset": rows, "data_collator": collated}, **STEP}
    log = runs.run(expression, model=model, per_device_train_batch_size=4, gradient_accumulation_steps=2, **how).logs[
        0
    ]
    if expression == "plain":
        assert log["loss"] == pytest.approx(Aligned().eval()(**collated(rows)).loss.item(), rel=1e-5)
    named, taken = rdrop_of(Aligned(), collated(rows))
    _, z, w = two_passes(Aligned(), collated(rows))
    assert taken.problem == "ctc"
    assert named["consistency"] == pytest.approx(categorical(z, w).mean().item(), rel=1e-4)

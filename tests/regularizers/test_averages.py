"""An average of the weights as a part of a regularizer: how it reads, what it asks, and that a Trainer takes it."""

import warnings

import pytest
import tiny
import torch
from datasets import Dataset

from hf_rat import Regularization, RegularizedTrainer, RegularizedTrainingArguments, ema, fgm, parse, swa
from hf_rat.regularizers.averages import Average, average_of
from hf_rat.regularizers.terms import is_plain


@pytest.mark.parametrize(
    ("text", "average"),
    [
        ("plain", None),
        ("ema", Average("ema", 0.99)),
        ("rdrop + 0.5 * vat + swa(0.7)", Average("swa", 0.7)),
        ("fgm(begin=0.5) + ema(0.9)", Average("ema", 0.9)),
    ],
)
def test_it_is_found_in_a_sum(text, average):
    term = parse(text)
    assert average_of(term) == average
    assert parse(repr(term)) == term


@pytest.mark.parametrize("text", ["ema", "swa"])
def test_alone_it_is_plain_training(text):
    assert is_plain(parse(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ema + swa", r"has 2 averages of the weights, \[ema\(0.99\), swa\(0.5\)\]; keep one"),
        ("0.5 * ema", r"scales ema\(0.99\) by 0.5"),
        ("2 * (fgm + swa)", r"scales swa\(0.5\) by 2"),
        ("ema(0)", r"ema\(beta=0\) keeps nothing"),
        ("swa(1)", r"after must be a finite number of at least 0 and below 1"),
    ],
)
def test_what_makes_no_sense_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        average_of(parse(text))


def trainer(folder, regularizer, **settings):
    torch.manual_seed(0)
    rows = Dataset.from_list([{n: x.tolist() for n, x in zip(b, r, strict=True)} for b, r in _rows()])
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "bf16": False}
    args = RegularizedTrainingArguments(str(folder), max_steps=6, learning_rate=0.05, seed=1, **quiet, **settings)
    return RegularizedTrainer(tiny.tiny_model(), args, train_dataset=rows, eval_dataset=rows, regularizer=regularizer)


def _rows():
    batch = tiny.tiny_batch(size=8)
    return [(batch, row) for row in zip(*batch.values(), strict=True)]


@pytest.mark.parametrize("text", ["ema(0.5)", "swa(0.5)"])
def test_it_is_the_same_as_the_argument(tmp_path, text):
    inside, beside = trainer(tmp_path, fgm() + parse(text)), trainer(tmp_path, fgm(), average=text)
    for one in (inside, beside):
        one.train()
    other = beside.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in inside.model.state_dict().items())
    last = trainer(tmp_path, fgm())
    last.train()
    assert any(not torch.equal(value, other[name]) for name, value in last.model.state_dict().items())


def test_two_descriptions_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match=r"args.average='swa\(0.5\)' and ema\(0.99\) in the regularizer: .* keep one"):
        trainer(tmp_path, ema(), average="swa(0.5)")


def test_a_loop_of_its_own_is_told_that_it_must_average():
    with pytest.warns(UserWarning, match=r"AveragedWeights\(model, beta=0.9, runs=False\)"):
        Regularization(fgm() + ema(0.9), tiny.tiny_model())
    with pytest.warns(UserWarning, match=r"AveragedWeights\(model, runs=False\)"):
        Regularization(swa(), tiny.tiny_model())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Regularization(fgm() + ema(0.9), tiny.tiny_model(), averages=True)

"""Language models over a large vocabulary: what agreement costs, and that it is the same agreement."""

import pytest
import torch
from test_step_cost import load, step_cost
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rat import Regularization, parse
from hf_rat.passes import copies
from hf_rat.passes.copies import is_wide

benchmark = load("vocabulary")


def tiny_llama(vocabulary, dropout=0.0):
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = LlamaConfig(vocab_size=vocabulary, **sizes, attention_dropout=dropout, initializer_range=0.3)
    return LlamaForCausalLM(config).train()


def random_batch(vocabulary, size=2, length=64):
    ids = torch.randint(0, vocabulary, (size, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_r_drop_fits_into_a_quarter_more_than_two_plain_passes(dtype):
    config = benchmark.config_of("llama", 32_000, 64)
    contestants = [benchmark.enlist(name, config, getattr(torch, dtype)) for name in ("plain", "rdrop")]
    plain, ours = (step_cost.measure_peak(contestant, random_batch(32_000)) for contestant in contestants)
    assert ours <= 1.25 * 2 * plain


@pytest.mark.filterwarnings("ignore:.* has no dropout")
@pytest.mark.parametrize("expression", ["rdrop(passes=3)", "rat(epsilons=(0.5, 0.1), alpha=2.0)", "vat + fraternal"])
def test_one_by_one_the_passes_are_those_of_the_doubled_batch(expression, monkeypatch):
    batch, found = random_batch(60, length=7), []
    for threshold in (2**14, 60):
        monkeypatch.setattr(copies, "WIDE", threshold)
        torch.manual_seed(0)
        model = tiny_llama(60)
        torch.manual_seed(0)
        losses = Regularization(parse(expression), model).backward(batch)
        found.append((losses, gradients(model)))
    (doubled, theirs), (one_by_one, ours) = found
    assert {name: float(loss) for name, loss in one_by_one.items()} == pytest.approx(
        {name: float(loss) for name, loss in doubled.items()}, rel=1e-5, abs=1e-7
    )
    assert_same_gradients(ours, theirs)


def test_only_language_models_over_large_vocabularies_run_one_by_one():
    assert is_wide(tiny_llama(2**14))
    assert not is_wide(tiny_llama(2**14 - 1))
    assert not is_wide(tiny_model())
    assert not is_wide(torch.nn.Linear(3, 2**15))


def test_each_pass_has_its_own_dropout_masks(monkeypatch):
    monkeypatch.setattr(copies, "WIDE", 60)
    losses = Regularization(parse("rdrop"), tiny_llama(60, dropout=0.5)).backward(
        tiny_batch(kind="none") | {"labels": tiny_batch()["input_ids"]}
    )
    assert losses["consistency"] > 1e-3

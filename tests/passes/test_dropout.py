"""Dropout under control: masks are replayed exactly, rates are changed everywhere, what is out of reach is refused."""

import pytest
import torch
from tiny import FAMILIES, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F

from hf_rat import Regularization, expectation_linear, rat, rdrop
from hf_rat.passes.dropout import DropoutRate, SharedMasks

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_masks_are_the_same_masks(family):
    model, batch = tiny_model(family, dropout=0.3), tiny_batch()
    masks = SharedMasks(CPU)
    with masks.replay():
        first = model(**batch).logits
    assert not torch.equal(first, model(**batch).logits)
    with masks.replay():
        assert torch.equal(first, model(**batch).logits)


def test_a_replay_leaves_the_generator_where_it_was():
    masks = SharedMasks(CPU)
    with masks.replay():
        torch.rand(7)
    torch.rand(3)
    before = torch.get_rng_state()
    with masks.replay():
        torch.rand(50)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="negative dimension"), masks.replay():
        torch.rand(torch.randint(5, 9, ()).item() - 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_recording_pass_draws_as_if_nobody_recorded():
    torch.manual_seed(3)
    expected = torch.rand(5)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with SharedMasks(CPU).replay():
        assert torch.equal(torch.rand(5), expected)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("rate", [0.2, 0.7])
@pytest.mark.parametrize("call", ["module", "functional", "positional", "default"])
def test_the_rate_of_every_spelling_of_dropout_changes(call, rate):
    x = torch.ones(200, 200)
    drop = {
        "module": nn.Dropout(0.5),
        "functional": lambda x: F.dropout(x, p=0.5, training=True),
        "positional": lambda x: F.dropout(x, 0.5, True, False),
        "default": lambda x: F.dropout(x),
    }[call]
    with DropoutRate(rate):
        dropped = drop(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(rate, abs=0.01)
    assert float(dropped.max()) == pytest.approx(1 / (1 - rate))
    assert float((drop(x) == 0).float().mean()) == pytest.approx(0.5, abs=0.01)  # and it is over afterwards


def test_dropout_in_place_stays_in_place():
    x = torch.ones(100, 100)
    with DropoutRate(0.3):
        dropped = F.dropout(x, 0.5, inplace=True)
    assert dropped is x
    assert float((x == 0).float().mean()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("spelling", ["keyword", "positional"])
def test_the_rate_of_fused_attention_changes(spelling):
    """With values of ones, attention gives 1 without dropout; with it, a sum of kept weights / (1 - rate)."""
    query = torch.zeros(1, 1, 500, 4)  # uniform weights, 1/500 each
    value = torch.ones(1, 1, 500, 4)

    def attend():
        if spelling == "keyword":
            return F.scaled_dot_product_attention(query, query, value, dropout_p=0.5)
        return F.scaled_dot_product_attention(query, query, value, None, 0.5)

    def variance_of(rate):
        return rate / (1 - rate) / 500  # of the mean of 500 Bernoulli(1 - rate) / (1 - rate)

    with DropoutRate(0.1):
        assert float(attend()[..., 0].var()) == pytest.approx(variance_of(0.1), rel=0.3)
    assert float(attend()[..., 0].var()) == pytest.approx(variance_of(0.5), rel=0.3)


def test_what_is_off_stays_off():
    x = torch.ones(50, 50)
    query = torch.randn(1, 1, 9, 4)
    with DropoutRate(0.5):
        assert torch.equal(nn.Dropout(0.0)(x), x)
        assert torch.equal(nn.Dropout(0.5).eval()(x), x)
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
        fused = F.scaled_dot_product_attention(query, query, query)
    torch.testing.assert_close(fused, F.scaled_dot_product_attention(query, query, query))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rate_zero_is_the_network_in_evaluation(family, attention):
    model, batch = tiny_model(family, dropout=0.4), tiny_batch()
    if attention == "eager" or model._supports_sdpa:
        model.set_attn_implementation(attention)
    with DropoutRate(0.0):
        trained = model(**batch).logits
    torch.testing.assert_close(trained, model.eval()(**batch).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "deberta_v2"])
def test_a_rate_on_a_model_is_the_model_built_with_that_rate(family, attention):
    batch = tiny_batch()
    low, high = tiny_model(family, dropout=0.1), tiny_model(family, dropout=0.4)
    for model in (low, high):
        if attention == "eager" or model._supports_sdpa:
            model.set_attn_implementation(attention)
    torch.manual_seed(5)
    expected = high(**batch).logits
    torch.manual_seed(5)
    with DropoutRate(0.4):
        assert torch.equal(low(**batch).logits, expected)
    torch.manual_seed(5)
    assert not torch.equal(low(**batch).logits, expected)


def test_a_compiled_model_obeys_rates_and_replays_too():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5))
    compiled = torch.compile(model, backend="aot_eager")
    x, masks = torch.randn(30, 4), SharedMasks(CPU)
    with masks.replay():
        first = compiled(x)
    for rate in (0.0, 0.9, 0.0):
        with DropoutRate(rate):
            dropped = compiled(x)
        assert float((dropped == 0).float().mean()) == pytest.approx(rate, abs=0.05)
    assert not torch.equal(compiled(x), first)
    with masks.replay():
        assert torch.equal(compiled(x), first)


UNEQUAL = (rat(dropouts=(0.1, 0.3)), expectation_linear())


@pytest.mark.parametrize("regularizer", UNEQUAL, ids=lambda r: r.name)
def test_activation_checkpointing_is_refused_where_rates_differ(regularizer):
    model = tiny_model(dropout=0.1)
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="activation checkpointing would") as error:
        Regularization(regularizer, model)
    assert regularizer.name in str(error.value)
    assert "\n" not in str(error.value)
    Regularization(rdrop(), model).close()  # one rate for all: fine


@pytest.mark.parametrize("regularizer", UNEQUAL, ids=lambda r: r.name)
def test_attention_that_does_not_obey_the_rate_is_refused(regularizer):
    model = tiny_model(dropout=0.1)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match='attn_implementation="flash_attention_2"') as error:
        Regularization(regularizer, model)
    assert "\n" not in str(error.value)
    Regularization(rdrop(), model).close()

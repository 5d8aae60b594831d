"""`--fast` on a CPU: masks of 16 bits have torch's distribution and are replayed like torch's; attention in bf16."""

import math
import warnings

import pytest
import runs
import torch
from tiny import FAMILIES, assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F

from hf_rat import Regularization, fast, parse
from hf_rat.regularizers.dropout import DropoutRate, SharedMasks


@pytest.fixture
def switched_on(monkeypatch, fast_undone):
    """A machine that --fast finds bf16 on."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


@pytest.fixture
def masks(switched_on):
    """Masks are drawn fast, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast.draw_masks_fast()


# -- the distribution ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93, 1e-4])
def test_each_number_is_drawn_by_itself(p, dtype, masks):
    torch.manual_seed(0)
    drawn = torch.empty(999, 1003, dtype=dtype).bernoulli_(p)  # not a multiple of four
    assert set(drawn.double().unique().tolist()) == {0.0, 1.0}
    on = drawn.double().flatten()
    deviation = math.sqrt(p * (1 - p))
    # Of each of the four numbers that share 64 bits, and of neighbours together, within four standard errors.
    for lane in on[: len(on) // 4 * 4].view(-1, 4).unbind(1):
        assert abs(lane.mean() - p) < 4 * deviation / math.sqrt(len(lane)) + 2**-17
    for distance in (1, 2, 3, 4, 5, 1003):
        together = ((on[:-distance] - p) * (on[distance:] - p)).mean() / deviation**2
        assert abs(together) < 4 / math.sqrt(len(on) - distance)


def test_the_ends_of_the_scale_and_odd_tensors(masks):
    for size in (0, 1, 2, 3, 5):
        assert torch.equal(torch.empty(size).bernoulli_(1.0), torch.ones(size))
        assert torch.equal(torch.ones(size).bernoulli_(0.0), torch.zeros(size))
    assert torch.equal(torch.ones(9).bernoulli_(1e-7), torch.zeros(9))
    turned = torch.full((300, 200), 7.0).t()
    assert float(turned.bernoulli_(0.3).mean()) == pytest.approx(0.3, abs=0.02)
    with pytest.raises(RuntimeError, match=r"p to be in \[0, 1\], but got p=1.5"):
        torch.empty(3).bernoulli_(1.5)


def test_a_given_generator_is_the_one_that_draws(masks):
    before = torch.get_rng_state()
    one, other = (torch.empty(100).bernoulli_(0.5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_dropout_keeps_the_mean_and_its_gradient_is_the_mask(rate, masks):
    x = torch.ones(1000, 1000, requires_grad=True)
    dropped = F.dropout(x, rate)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())
    assert float(dropped.max()) == pytest.approx(1 / (1 - rate))
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)


def test_they_are_not_torchs_masks(masks):
    """Otherwise nothing above tests anything."""
    torch.manual_seed(0)
    ours = torch.empty(1000).bernoulli_(0.5)
    fast.draw_masks_fast()._destroy()
    torch.manual_seed(0)
    assert not torch.equal(torch.empty(1000).bernoulli_(0.5), ours)


# -- in models and in training ---------------------------------------------------------------------------------------


def test_a_rate_of_a_pass_reaches_them(masks):
    with DropoutRate(0.7):
        dropped = nn.Dropout(0.1)(torch.ones(300, 300))
        kept = torch.empty(300, 300).bernoulli_(0.9)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.7, abs=0.01)
    assert float(kept.mean()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_replayed(family, masks):
    model, batch, shared = tiny_model(family, dropout=0.3), tiny_batch(), SharedMasks(torch.device("cpu"))
    with shared.replayed():
        first = model(**batch).logits
    assert not torch.equal(first, model(**batch).logits)
    with shared.replayed():
        assert torch.equal(first, model(**batch).logits)


@pytest.mark.parametrize("expression", ["rat", "rdrop", "vat", "freelb"])
def test_activation_checkpointing_draws_the_same_masks_again(expression, masks):
    found = []
    for checkpointing in (False, True):
        model = tiny_model(dropout=0.3)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(1)
        Regularization(parse(expression), model, length_buckets="off").backward(tiny_batch())
        found.append(gradients(model))
    assert_same_gradients(found[1], found[0])


def test_lean_memory_draws_the_same_masks_again(masks):
    """With a rate for each pass they run one by one in both ways."""
    found = []
    for memory in ("fast", "lean"):
        model = tiny_model(dropout=0.3)
        torch.manual_seed(1)
        Regularization(parse("rat(dropouts=(0.1, 0.4))"), model, memory=memory).backward(tiny_batch())
        found.append(gradients(model))
    assert_same_gradients(found[1], found[0])


@pytest.mark.parametrize("reg", ["plain", "rat"])
def test_a_fast_run_ends_where_a_resumed_one_ends(reg, tmp_path, switched_on, monkeypatch):
    calls, draw = [], fast._bernoulli
    monkeypatch.setattr(fast, "_bernoulli", lambda *args, **kwargs: calls.append(1) or draw(*args, **kwargs))
    settings = {"fast": True, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path)}
    whole = runs.run(reg, **settings)
    again = runs.trainer(reg, **settings)
    assert calls
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    runs.assert_same_weights(runs.ran(again).weights, whole.weights)


# -- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "dropout", "taken"), [("bert", 0.1, "eager"), ("bert", 0.0, "sdpa"), ("gpt2", 0.1, "eager")]
)
@pytest.mark.parametrize("fast_run", [True, False])
def test_a_model_that_drops_out_in_attention_takes_its_own(family, dropout, taken, fast_run, switched_on):
    model = tiny_model(family, dropout=dropout)
    assert model.config._attn_implementation == "sdpa"
    one = runs.trainer("rat", model=model, max_steps=1, fast=fast_run)
    one.train()
    assert model.config._attn_implementation == (taken if fast_run else "sdpa")
    assert ("attention with dropout in bf16" in one.announcement()) == fast_run


def test_torchs_own_still_computes_in_fp32():
    """If this fails, torch has changed, and `attend_in_half_precision` is no longer needed."""
    query = torch.randn(1, 2, 8, 4).bfloat16()
    with torch.profiler.profile() as profile:
        F.scaled_dot_product_attention(query, query, query, dropout_p=0.1)
    assert [event for event in profile.events() if event.name == "aten::_to_copy"]

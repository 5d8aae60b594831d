"""`--fast` on a CPU: masks of 16 bits have torch's distribution and are replayed like torch's; attention in bf16."""

import math
import warnings

import pytest
import runs
import torch
from tiny import FAMILIES, assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_rat import Regularization, parse
from hf_rat.passes.dropout import DropoutRate, SharedMasks
from hf_rat.trainer import fast


@pytest.fixture
def switched_on(fast_undone, monkeypatch):
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
    fast.undo()
    torch.manual_seed(0)
    assert not torch.equal(torch.empty(1000).bernoulli_(0.5), ours)


# -- in models and in training ---------------------------------------------------------------------------------------


def test_a_rate_of_a_pass_reaches_them(masks):
    with DropoutRate(0.7):
        dropped = nn.Dropout(0.1)(torch.ones(300, 300))
        kept = torch.empty(300, 300).bernoulli_(0.9)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.7, abs=0.01)
    assert float((kept == 0).float().mean()) == pytest.approx(0.7, abs=0.01)
    assert float(kept.mean()) == pytest.approx(0.9, abs=0.02)  # a mask keeps its mean


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_replayed(family, masks):
    model, batch, shared = tiny_model(family, dropout=0.3), tiny_batch(), SharedMasks(torch.device("cpu"))
    with shared.replay():
        first = model(**batch).logits
    assert not torch.equal(first, model(**batch).logits)
    with shared.replay():
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

NO_MASK = 1e-9
"""A rate above 0 at which nothing is ever dropped."""
MASKS = {
    "none": {"is_causal": False},
    "causal": {"is_causal": True},
    "scaling": {"is_causal": False, "scaling": 0.3},
    "bool": {"attention_mask": torch.arange(6) < torch.tensor([3, 6])[:, None, None, None]},
    "nowhere": {"attention_mask": torch.ones(6, 6, dtype=torch.bool).tril(-1)},  # the first query sees nothing
    "float": {"attention_mask": torch.linspace(-2, 1, 36).view(6, 6)},
    "infinite": {"attention_mask": torch.zeros(6, 6).index_fill(0, torch.tensor([2]), -math.inf)},
}


@pytest.fixture
def taken(switched_on, monkeypatch):
    """Attention as --fast has it; which calls it leaves to transformers."""
    left, theirs = [], fast.sdpa_attention_forward
    monkeypatch.setattr(
        fast, "sdpa_attention_forward", lambda *args, **kwargs: left.append(1) or theirs(*args, **kwargs)
    )
    fast.attend_in_half_precision()
    return left


def attend(query, key, value, attention_mask=None, dropout=NO_MASK, module=None, **kwargs):
    module = nn.Module() if module is None else module
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, dropout=dropout, **kwargs)[0]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_attention_is_that_of_torch(mask, dtype, tolerance, taken):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 6, 4).to(dtype).requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    ours = attend(*inputs, **mask)
    assert not taken
    assert ours.dtype == dtype
    assert ours.shape == (2, 6, 3, 4)
    allowed = mask.get("attention_mask")
    if allowed is not None and allowed.dtype != torch.bool:
        allowed = allowed.double()
    expected = F.scaled_dot_product_attention(
        *exact, attn_mask=allowed, is_causal=mask.get("is_causal", False), scale=mask.get("scaling")
    ).transpose(1, 2)
    towards = torch.randn_like(expected)
    found = [ours, *torch.autograd.grad(ours, inputs, towards.to(dtype))]
    for mine, theirs in zip(found, [expected, *torch.autograd.grad(expected, exact, towards)], strict=True):
        assert (mine.double() - theirs).norm() <= tolerance * theirs.norm()


def test_attention_drops_out_weights(taken):
    """With values of ones and uniform weights, attention is the mean of the weights' masks."""
    query, value = torch.zeros(4, 8, 500, 4).half(), torch.ones(4, 8, 500, 4).half()
    mixed = attend(query, query, value, is_causal=False, dropout=0.3).float()
    assert not taken
    assert float(mixed.mean()) == pytest.approx(1.0, abs=2e-3)
    assert float(mixed[..., 0].std()) == pytest.approx(math.sqrt(0.3 / 0.7 / 500), rel=0.05)


def test_every_other_case_is_left_to_transformers(taken):
    half = torch.randn(1, 4, 3, 8).bfloat16()
    grouped = nn.Module()
    grouped.num_key_value_groups = 2
    attend(half.float(), half.float(), half.float())
    attend(half, half, half, dropout=0.0)
    attend(half, half[:, :2], half[:, :2], module=grouped)
    attend(half, half[:, :, :2], half[:, :, :2], is_causal=True)
    attend(half, half, half, position_bias=torch.zeros(1, 4, 3, 3).bfloat16())
    attend(half, half, half, output_attentions=True)
    assert len(taken) == 6
    attend(half, half, half, output_attentions=False, position_bias=None)
    assert len(taken) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_models_compute_what_they_did(family, taken):
    batch = tiny_batch()
    model, again = tiny_model(family), tiny_model(family, dropout=NO_MASK)
    with torch.autocast("cpu", torch.bfloat16):
        found = again(**batch).loss
        assert not taken or family in ("llama", "t5")  # grouped queries; a bias for each position
        expected = model(**batch).loss
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)
    ours, theirs = (torch.cat([g.flatten() for g in gradients(one).values()]) for one in (again, model))
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


@pytest.mark.parametrize("fast_run", [True, False])
def test_a_fast_run_attends_so_and_says_so(fast_run, switched_on, monkeypatch, caplog):
    calls, attention = [], fast._attention
    monkeypatch.setattr(fast, "_attention", lambda *args, **kwargs: calls.append(1) or attention(*args, **kwargs))
    one = runs.trainer("rat", model=tiny_model(dropout=0.1), max_steps=1, fast=fast_run)
    before = torch.get_float32_matmul_precision(), ALL_ATTENTION_FUNCTIONS["sdpa"]
    with caplog.at_level("INFO", "hf_rat"):
        one.train()
    assert bool(calls) == fast_run
    assert ("attention with dropout in bf16" in caplog.text) == fast_run
    assert before == (torch.get_float32_matmul_precision(), ALL_ATTENTION_FUNCTIONS["sdpa"]), "it is undone"
    assert not fast.draw_masks_fast.cache_info().currsize, "torch draws its own masks again"


def test_an_error_in_training_undoes_it_too(switched_on, monkeypatch):
    one = runs.trainer("rat", model=tiny_model(dropout=0.1), max_steps=1, fast=True)
    before = torch.get_float32_matmul_precision(), ALL_ATTENTION_FUNCTIONS["sdpa"]
    seen = []

    def fail(*args, **kwargs):
        seen.append((torch.get_float32_matmul_precision(), ALL_ATTENTION_FUNCTIONS["sdpa"]))
        raise RuntimeError("no loss")

    monkeypatch.setattr(one, "training_step", fail)
    with pytest.raises(RuntimeError, match="no loss"):
        one.train()
    assert seen == [("medium", fast._attention)]
    assert before == (torch.get_float32_matmul_precision(), ALL_ATTENTION_FUNCTIONS["sdpa"])
    assert not fast.draw_masks_fast.cache_info().currsize


def test_arguments_change_nothing_in_the_process(switched_on):
    before = torch.get_float32_matmul_precision(), ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert runs.arguments(fast=True).bf16
    assert before == (torch.get_float32_matmul_precision(), ALL_ATTENTION_FUNCTIONS["sdpa"])
    assert not fast.draw_masks_fast.cache_info().currsize


def test_torchs_own_still_computes_in_fp32():
    """If this fails, torch has changed, and `attend_in_half_precision` is no longer needed."""
    query = torch.randn(1, 2, 8, 4).bfloat16()
    with torch.profiler.profile() as profile:
        F.scaled_dot_product_attention(query, query, query, dropout_p=0.1)
    assert [event for event in profile.events() if event.name == "aten::_to_copy"]

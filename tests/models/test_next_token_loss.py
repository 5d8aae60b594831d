"""The cross-entropy that copies no logits, against that of Transformers."""

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from hf_rat.models import RNNConfig, RNNForCausalLM, next_token_loss
from hf_rat.models.next_token_loss import _CrossEntropies

VOCABULARY = 11


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Logits of more than two rows are too many."""
    monkeypatch.setattr(next_token_loss, "CHUNK", 2 * VOCABULARY)


def drawn(ignored=()):
    torch.manual_seed(0)
    logits = torch.randn(3, 7, VOCABULARY).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (3, 7))
    for place in ignored:
        labels[place] = -100
    return logits, labels


@pytest.mark.parametrize("items", [None, 20, torch.tensor(25)])
@pytest.mark.parametrize("ignored", [(), [(0, 1), (2, slice(3, 7))]])
@pytest.mark.parametrize("shifted", [True, False])
def test_it_is_that_of_transformers_with_its_gradients(shifted, ignored, items):
    logits, labels = drawn(ignored)
    found = []
    for loss in (next_token_loss.next_token_loss, ForCausalLMLoss):
        given = {"labels": None, "shift_labels": labels} if shifted else {"labels": labels}
        value = loss(logits, vocab_size=VOCABULARY, num_items_in_batch=items, **given)
        (first,) = torch.autograd.grad(value.square(), logits, create_graph=True)
        found.append([value, first, *torch.autograd.grad(first.square().sum(), logits)])
        found[-1] += torch.autograd.grad(
            loss(logits, vocab_size=VOCABULARY, num_items_in_batch=items, **given), logits
        )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_second_derivatives_by_finite_differences():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, -100, 3])
    assert torch.autograd.gradcheck(lambda x: _CrossEntropies.apply(x, labels, -100), logits)
    assert torch.autograd.gradgradcheck(lambda x: _CrossEntropies.apply(x, labels, -100), logits)


def test_what_does_not_count_has_no_gradient_whatever_its_logits():
    logits, labels = drawn([(1, 2)])
    with torch.no_grad():
        logits[1, 2] = torch.tensor([float("nan"), float("inf")] * 5 + [0.0])
    loss = next_token_loss.next_token_loss(logits, None, VOCABULARY, shift_labels=labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad[1, 2].eq(0).all()
    assert torch.isfinite(logits.grad).all()
    everything = torch.full_like(labels, -100)
    assert next_token_loss.next_token_loss(logits, None, VOCABULARY, shift_labels=everything).isnan()


def test_ruled_out_words_and_large_logits():
    logits, labels = drawn()
    labels.clamp_(max=VOCABULARY - 2)
    with torch.no_grad():
        logits[..., -1] = float("-inf")
        logits[0, 0, :2] = torch.tensor([1e4, -1e4])
    found = []
    for loss in (next_token_loss.next_token_loss, ForCausalLMLoss):
        value = loss(logits, None, VOCABULARY, shift_labels=labels)
        found.append((value, *torch.autograd.grad(value, logits)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_language_model_takes_it_and_one_may_set_another():
    model = RNNForCausalLM(RNNConfig(vocab_size=VOCABULARY, embedding_size=4, hidden_size=4))
    ids = torch.randint(1, VOCABULARY, (3, 7))
    outputs = model(ids, labels=ids)
    assert model.loss_function is next_token_loss.next_token_loss
    torch.testing.assert_close(outputs.loss, ForCausalLMLoss(outputs.logits, ids, VOCABULARY))
    model.loss_function = lambda logits, **_: logits.sum()
    assert model(ids, labels=ids).loss == model(ids).logits.sum()

"""Without the Trainer: a plain Accelerate loop, and no Accelerate at all, against loops written by hand."""

import pytest
import runs
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from test_trainer import hand_fgm

from hf_rat import Regularization, adversarial_dropout, fgm, rat, vat
from hf_rat.regularizers import L2, Gradient, Smoothness


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield Accelerator(cpu=True, gradient_accumulation_steps=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def batches():
    rows = runs.examples(16)
    return [runs.collate(rows[first : first + 4]) for first in range(0, 16, 4)]


def by_hand(epsilon=0.5):
    """Two steps of two micro-batches each: weights and losses."""
    model = tiny.tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for index, batch in enumerate(batches()):
        clean, adversarial = hand_fgm(model, batch, epsilon)
        ((clean + adversarial) / 2).backward()
        losses.append((clean.item(), adversarial.item()))
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict(), losses


def assert_as_by_hand(model, losses):
    weights, expected = by_hand()
    assert [(named["task"].item(), named["adversarial_task"].item()) for named in losses] == [
        pytest.approx(pair, rel=1e-5) for pair in expected
    ]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("single_backward", [False, True])
def test_backward_in_an_accelerate_loop(accelerator, single_backward):
    model = tiny.tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(runs.examples(16), batch_size=4, collate_fn=runs.collate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    regularization = Regularization(fgm(epsilon=0.5), model, accelerator=accelerator, single_backward=single_backward)
    losses = []
    for batch in loader:
        with accelerator.accumulate(model):  # accelerator.backward divides by gradient_accumulation_steps
            losses.append(regularization.backward(batch))
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                regularization.after_step()
    assert_as_by_hand(model, losses)


def test_losses_in_an_accelerate_loop(accelerator):
    model = tiny.tiny_model()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    regularization = Regularization(fgm(epsilon=0.5), model, accelerator=accelerator)
    losses = []
    for batch in batches():
        with accelerator.accumulate(model):
            losses.append(regularization.losses(batch))
            accelerator.backward(sum(losses[-1].values()))
            optimizer.step()
            optimizer.zero_grad()
    assert_as_by_hand(model, losses)


def test_backward_without_accelerate():
    model = tiny.tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularization = Regularization(fgm(epsilon=0.5), model)
    losses = []
    for index, batch in enumerate(batches()):
        losses.append(regularization.backward(batch, accumulation=2))
        assert not any(value.requires_grad for value in losses[-1].values())
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert_as_by_hand(model, losses)


def test_losses_without_accelerate():
    model = tiny.tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularization = Regularization(fgm(epsilon=0.5), model)
    losses = []
    for index, batch in enumerate(batches()):
        losses.append(regularization.losses(batch))
        (sum(losses[-1].values()) / 2).backward()
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert_as_by_hand(model, losses)


def test_labels_are_needed_only_by_terms_that_use_them():
    batch, model = tiny.tiny_batch(kind="none"), tiny.tiny_model()
    smooth = Smoothness(Gradient(L2(1.0), start=0.5), "kl")  # vat without its task loss
    named = Regularization(smooth, model).backward(batch)
    assert set(named) == {"smoothness"}
    assert any(gradient.any() for gradient in tiny.gradients(model).values())
    with pytest.raises(ValueError, match="labels"):
        Regularization(vat(), tiny.tiny_model()).backward(batch)


def test_closing_takes_the_hooks_off():
    model, batch = tiny.tiny_model(dropout=0.1), tiny.tiny_batch()
    regularization = Regularization(rat(epsilon=5.0) + adversarial_dropout(rate=0.5), model)
    regularization.backward(batch)
    assert model.get_input_embeddings()._forward_hooks
    regularization.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_pass_that_fails_leaves_no_perturbation_behind():
    model, batch = tiny.tiny_model(), tiny.tiny_batch()
    clean = model(**batch).logits
    regularization = Regularization(fgm(epsilon=5.0), model)
    passes = []

    def fail_second(*_):
        passes.append(1)
        if len(passes) == 2:
            raise KeyboardInterrupt

    handle = model.classifier.register_forward_hook(fail_second)
    with pytest.raises(KeyboardInterrupt):
        regularization.backward(batch)
    handle.remove()
    assert torch.equal(model(**batch).logits, clean)

"""fp16 with the loss scaler, in full: autocast as Accelerate does it, a scaled backward, an unscaled step.

On the CPU, in a loop of its own: Accelerate has no fp16 there (and hf-rat refuses to be asked for it).
"""

from types import MethodType

import keyed
import pytest
import runs
import tiny
import torch
from test_nonfinite import HalfPrecision

from hf_rat import Regularization, parse

EVERY = [*runs.SETTINGS.values(), *runs.COMPOSED]


@pytest.fixture(autouse=True, scope="module")
def _keyed():
    with keyed.noise():
        yield


def model(half):
    one = tiny.tiny_model(dropout=0.1, _attn_implementation="eager")
    if half:
        one.forward = MethodType(torch.autocast("cpu", torch.float16)(type(one).forward), one)
    return one


def step(expression, accelerator, scale=1.0):
    """Losses, gradient norm and weights of a step of two micro-batches."""
    one = model(accelerator is not None)
    regularization = Regularization(parse(expression), one, accelerator=accelerator, length_buckets="off")
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False) if accelerator is None else accelerator.scaler
    rows, seen = runs.examples(8), {}
    for part in (rows[:4], rows[4:]):
        batch = runs.collate(part)
        keyed.begin(batch["input_ids"], batch["attention_mask"])
        for name, value in regularization.backward(batch, accumulation=2, step=3).items():
            seen[name] = seen.get(name, 0.0) + value.item() / 2
    scaler.unscale_(optimizer)
    seen["gradient norm"] = float(torch.nn.utils.clip_grad_norm_(one.parameters(), torch.inf))
    scaler.step(optimizer)
    scaler.update()
    return seen, one.state_dict()


@pytest.mark.parametrize("expression", EVERY)
def test_a_step_in_fp16_is_the_step(expression):
    exact, _ = step(expression, None)
    half, weights = step(expression, HalfPrecision(2.0**16))
    assert half != exact
    # fp16 keeps 11 bits, and a few signs and masks of a search fall the other way.
    assert half == pytest.approx(exact, rel=2e-2, abs=1e-3)
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("expression", EVERY)
def test_a_scale_that_is_too_large_skips_the_step_and_is_lowered(expression):
    accelerator = HalfPrecision(2.0**100)
    before = model(True).state_dict()
    _, after = step(expression, accelerator)
    runs.assert_same_weights(after, before)
    assert accelerator.scaler.get_scale() == 2.0**99

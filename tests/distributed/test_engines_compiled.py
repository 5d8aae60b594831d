"""`torch.compile` with inductor, which writes and compiles C++ for the CPU: the same run as eager, at other roundings.

test_invariance.py has every recipe with `aot_eager`, which traces alike and compiles nothing. Needs a C++ compiler.
"""

import shutil

import keyed
import pytest
import runs
import torch
from test_invariance import BagOfWords, collate_to_one_length, one_layer
from torch._inductor import config as inductor
from torch._inductor import metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
]

RECIPES = ["freelb", "vat", "adversarial_dropout"]


@pytest.fixture(autouse=True, scope="module")
def _keyed():
    # The compiler learns torch's functions by name once, and must not learn the keyed dropout in the place of torch's.
    torch.compile(torch.nn.functional.dropout, backend="eager")(torch.ones(1))
    # The keys of the keyed dropout are torch's random numbers: inductor must not draw its own.
    with keyed.noise(), inductor.patch(fallback_random=True):
        yield


def assert_compiled_as_eager(expression, model, **settings):
    options = {"data_collator": collate_to_one_length}
    how = {"count": 16, "options": options, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    eager = runs.run(expression, keyed.KeyedTrainer, model=model(), **how, **settings)
    torch._dynamo.reset()
    metrics.reset()
    compiled = runs.run(
        expression,
        keyed.KeyedTrainer,
        model=model(),
        torch_compile=True,
        torch_compile_backend="inductor",
        **how,
        **settings,
    )
    assert metrics.generated_kernel_count > 0, "inductor compiled nothing"
    assert all(value > 0.005 for name, value in eager.logs[-1].items() if name.startswith("loss_"))
    runs.assert_same_logs(compiled.logs, eager.logs, 1e-4)
    for name, weight in eager.weights.items():
        torch.testing.assert_close(compiled.weights[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_inductor_changes_nothing(recipe):
    assert_compiled_as_eager(runs.SETTINGS[recipe], BagOfWords)


def test_inductor_changes_nothing_in_a_transformer():
    assert_compiled_as_eager(runs.SETTINGS["rat"], one_layer)

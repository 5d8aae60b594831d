"""LoRA on a frozen base, also in half precision: every recipe's perturbation is really there, and is learned from.

QLoRA keeps the base quantised. What matters to a regularizer is what is the same here: the base and its embeddings are
frozen and in half precision, and under activation checkpointing their outputs are made to require gradients.
"""

import inspect
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import gradients, tiny_batch, tiny_model

from hf_rat import Regularization, adversarial_dropout, fgm, parse
from hf_rat.regularizers import RECIPES

# In its first step momentum_sam has no momentum to move along.
PERTURBING = [
    name
    for name, build in RECIPES.items()
    if "epsilon" in inspect.signature(build).parameters and name != "momentum_sam"
]


def lora(dtype=torch.float32, checkpointing=False, family="llama"):
    """A frozen base with adapters in fp32, whose B is not zero, as after some steps."""
    model = tiny_model(family).to(dtype)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    names = ["q_proj", "v_proj"] if family == "llama" else ["query", "value"]
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=names))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape)
    return model


def step(expression, **settings):
    """(losses, gradients of the adapters, logits of each forward of the model)."""
    model, seen = lora(**settings), []
    assert not model.get_input_embeddings().weight.requires_grad
    regularization = Regularization(parse(expression) if isinstance(expression, str) else expression, model)
    # A look at the model, which has no graph, is no pass.
    model.get_base_model().register_forward_hook(
        lambda module, args, output: seen.append(output.logits.detach()) if torch.is_grad_enabled() else None
    )
    torch.manual_seed(0)
    losses = regularization.backward(tiny_batch())
    found = {name: gradient for name, gradient in gradients(model).items() if "lora_" in name}
    regularization.close()
    return losses, found, seen


KINDS = {
    "fp32": {},
    "bf16": {"dtype": torch.bfloat16},
    "fp32, checkpointing": {"checkpointing": True},
    "bf16, checkpointing": {"dtype": torch.bfloat16, "checkpointing": True},
}


@pytest.mark.filterwarnings("ignore:.* has no dropout", "ignore:.*checkpointing")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PERTURBING)
def test_the_perturbation_moves_the_logits_and_what_the_adapters_learn(name, kind):
    """Without dropout the embeddings' move is all that can make a difference."""
    small = {"smart": ", step=0.5, start=0.01", "pgd": ", step=0.5", "freelb": ", step=0.5"}.get(name, "")
    _, at_zero, still = step(f"{name}(epsilon=0.0{', start=0.0' if name == 'freelb' else ''})", **KINDS[kind])
    epsilon = 0.5 if name not in ("smart", "r3f", "fgsm") else 0.1
    losses, there, moved = step(f"{name}(epsilon={epsilon}{small})", **KINDS[kind])
    apart = max(float((z[:4] - still[0][:4]).float().abs().max()) for z in moved)
    assert apart > 0.05, "the logits did not move"
    scale = max(float(gradient.abs().max()) for gradient in at_zero.values())
    change = max(float((there[key] - at_zero[key]).abs().max()) for key in at_zero)
    assert change > 1e-3 * scale, "the adapters' gradient did not change"
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.filterwarnings("ignore:.*checkpointing")
@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_dropout_moves_them_too(kind):
    _, at_zero, still = step(adversarial_dropout(rate=0.0), **KINDS[kind])
    _, there, moved = step(adversarial_dropout(rate=0.3), **KINDS[kind])
    assert max(float((z - still[0]).float().abs().max()) for z in moved) > 0.05
    assert any(not torch.allclose(there[key], at_zero[key], rtol=1e-3) for key in at_zero)


def test_checkpointing_changes_nothing():
    plainly, checkpointed = step(fgm(epsilon=0.5)), step(fgm(epsilon=0.5), checkpointing=True)
    assert float(checkpointed[0]["adversarial_task"]) == pytest.approx(float(plainly[0]["adversarial_task"]), rel=1e-5)
    for name, gradient in plainly[1].items():
        torch.testing.assert_close(checkpointed[1][name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*checkpointing")
@pytest.mark.parametrize("expression", ["r3f(epsilon=1e-5)", "smart(epsilon=1e-5, start=1e-5)"])
def test_a_perturbation_that_half_precision_swallows_is_told(expression):
    with pytest.warns(UserWarning, match=r"a perturbation of at most \de-0\d is lost in the half precision") as told:
        step(expression, dtype=torch.bfloat16)
    assert sum("is lost" in str(warning.message) for warning in told) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is lost")
        step(expression)
        step("r3f(epsilon=0.1)", dtype=torch.bfloat16)

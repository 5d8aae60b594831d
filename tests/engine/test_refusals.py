"""What no regularizer can be right under is refused, in one line; plain is not."""

import pytest
import runs
import tiny
import torch
from peft import LoraConfig, get_peft_model

from hf_rat import Regularization, RegularizedTrainer, fgm, parse

REGULARIZED = [expression for name, expression in runs.SETTINGS.items() if name != "plain"]


def without_dropout():
    return tiny.tiny_model(dropout=0.0, _attn_implementation="eager")


REENTRANT = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}


def several_gpus(**settings):
    args = runs.arguments(**settings)
    args._n_gpu = 2
    return args


REFUSED = [
    (lambda reg: runs.arguments(reg=reg, **REENTRANT), "reentrant"),
    (lambda reg: several_gpus(reg=reg), "2 GPUs"),
    (lambda reg: runs.arguments(reg=reg, optim="lomo"), "--optim lomo"),
    (lambda reg: runs.arguments(reg=reg, optim="adalomo"), "--optim adalomo"),
]


@pytest.mark.parametrize("expression", REGULARIZED)
@pytest.mark.parametrize(("arguments", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_what_cannot_be_right_is_refused(arguments, named, expression):
    with pytest.raises(ValueError, match=named) as error:
        RegularizedTrainer(without_dropout(), arguments(expression), train_dataset=[])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("arguments", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_plain_is_never_refused(arguments, named):
    RegularizedTrainer(without_dropout(), arguments("plain"), train_dataset=[])


@pytest.mark.parametrize("settings", [{"reg": "rat"}, {"reg": "rdrop", "reg_alpha": 0.5}], ids=str)
def test_two_descriptions_of_the_regularizer_are_refused(settings):
    with pytest.raises(ValueError, match="keep one") as error:
        runs.trainer(options={"regularizer": fgm()}, **settings)
    assert "fgm" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unequal_rate_under_checkpointing_is_refused():
    one = runs.trainer("rat(dropouts=(0.1, 0.3))", activation_checkpointing=True)
    with pytest.raises(ValueError, match="activation checkpointing") as error:
        one.train()
    assert "\n" not in str(error.value)
    runs.run("rat(epsilons=(0.1, 0.3))", count=4, activation_checkpointing=True)


def test_labels_that_are_missing_are_named():
    one = runs.trainer("rat", options={"data_collator": lambda rows: {"input_ids": torch.ones(4, 3, dtype=int)}})
    with pytest.raises(ValueError, match="labels"):
        one.train()


@pytest.mark.parametrize("expression", REGULARIZED)
def test_reentrant_checkpointing_that_the_model_brings_along_is_refused(expression):
    model = tiny.tiny_model(dropout=0.1)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    Regularization(parse("plain"), model)
    with pytest.raises(ValueError, match="checkpoint"):
        Regularization(parse(expression), model)


@pytest.mark.parametrize("adapters", [False, True])
def test_a_site_inside_of_a_layer_that_checkpointing_runs_again_is_refused(adapters):
    """Outside of the layers, and at their outputs, checkpointing changes nothing."""

    def opened(module, checkpointing=True):
        model = tiny.tiny_model()
        if checkpointing:
            model.activation_checkpointing_enable()
        if adapters:
            model = get_peft_model(model, LoraConfig(target_modules=["query"])).train()
        return model, Regularization(parse(f'fgm(epsilon=0.5, site="{module}")'), model)

    with pytest.raises(ValueError, match=r"without the perturbation.* the output of bert.encoder.layer.0$") as error:
        opened("bert.encoder.layer.0.attention.output")
    assert "\n" not in str(error.value)
    opened("bert.encoder.layer.0.attention.output", checkpointing=False)
    for module in ("bert.embeddings", "bert.encoder.layer.0"):
        found = []
        for checkpointing in (False, True):
            torch.manual_seed(0)  # of the adapters
            model, regularization = opened(module, checkpointing)
            regularization.backward(tiny.tiny_batch())
            found.append(tiny.gradients(model))
        tiny.assert_same_gradients(*found)

"""Regularized fine-tuning for Hugging Face models: one flag, one import."""

from hf_rat import models  # registers the companion models with Transformers' Auto classes
from hf_rat.engine.regularization import Regularization
from hf_rat.regularizers.expressions import parse
from hf_rat.regularizers.recipes import (
    adversarial_dropout,
    expectation_linear,
    fgm,
    fgsm,
    fraternal,
    freelb,
    neftune,
    pgd,
    pi_model,
    plain,
    r3f,
    rat,
    rdrop,
    smart,
    vat,
)
from hf_rat.trainer.trainer import RegularizationMixin, RegularizedTrainer
from hf_rat.trainer.training_args import RegularizedTrainingArguments

__all__ = [
    "Regularization",
    "RegularizationMixin",
    "RegularizedTrainer",
    "RegularizedTrainingArguments",
    "adversarial_dropout",
    "expectation_linear",
    "fgm",
    "fgsm",
    "fraternal",
    "freelb",
    "models",
    "neftune",
    "parse",
    "pgd",
    "pi_model",
    "plain",
    "r3f",
    "rat",
    "rdrop",
    "smart",
    "vat",
]

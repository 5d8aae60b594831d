"""Regularized fine-tuning for Hugging Face models: one flag, one import."""

from hf_rat import models  # registers the companion models with Transformers' Auto classes
from hf_rat.engine.regularization import Regularization
from hf_rat.regularizers import recipes
from hf_rat.regularizers.expressions import parse
from hf_rat.regularizers.recipes import *  # noqa: F403
from hf_rat.trainer.trainer import RegularizationMixin, RegularizedTrainer
from hf_rat.trainer.training_args import RegularizedTrainingArguments

__all__ = [
    "Regularization",
    "RegularizationMixin",
    "RegularizedTrainer",
    "RegularizedTrainingArguments",
    "models",
    "parse",
]
__all__ += recipes.__all__

"""Every name that `hf_rat` exports; nothing else may be bound here. Importing it takes torch and Transformers."""

from hf_rat import models as models  # lets Transformers' Auto classes find the companion models
from hf_rat.engine.averaged_model import AveragedWeights as AveragedWeights
from hf_rat.engine.regularization import Regularization as Regularization
from hf_rat.passes.point import Point as Point
from hf_rat.regularizers.expressions import parse as parse
from hf_rat.regularizers.recipes import *
from hf_rat.regularizers.terms import Term as Term
from hf_rat.trainer.dropout_schedule import DropoutSchedule as DropoutSchedule
from hf_rat.trainer.trainer import RegularizationMixin as RegularizationMixin
from hf_rat.trainer.trainer import RegularizedTrainer as RegularizedTrainer
from hf_rat.trainer.training_args import RegularizedTrainingArguments as RegularizedTrainingArguments

"""The algebra: site x ball x perturbation x term x divergence. Knows torch only."""

from hf_rat.regularizers import recipes  # fills RECIPES
from hf_rat.regularizers.adaptive import Adaptive
from hf_rat.regularizers.balls import L2, Hamming, Linf
from hf_rat.regularizers.expressions import parse
from hf_rat.regularizers.perturbations import Ascent, Dropped, Flip, Gradient, Noise, Perturbation, Redrawn
from hf_rat.regularizers.recipe import RECIPES
from hf_rat.regularizers.schedules import Scheduled
from hf_rat.regularizers.terms import Adversarial, Consistency, Proximal, Smoothness, TaskLoss, Term
from hf_rat.regularizers.weight_balls import Ellipsoid, PerTensor, Spread
from hf_rat.regularizers.weight_perturbations import Mixed, Momentum, StepGradient
from hf_rat.regularizers.weight_terms import Anchored, Distance, NoisyStart

__all__ = [
    "L2",
    "RECIPES",
    "Adaptive",
    "Adversarial",
    "Anchored",
    "Ascent",
    "Consistency",
    "Distance",
    "Dropped",
    "Ellipsoid",
    "Flip",
    "Gradient",
    "Hamming",
    "Linf",
    "Mixed",
    "Momentum",
    "Noise",
    "NoisyStart",
    "PerTensor",
    "Perturbation",
    "Proximal",
    "Redrawn",
    "Scheduled",
    "Smoothness",
    "Spread",
    "StepGradient",
    "TaskLoss",
    "Term",
    "parse",
    "recipes",
]

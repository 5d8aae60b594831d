"""How a class of Trainers runs one pass with its own loss, so that a regularizer can ask for several."""

from typing import Any

from hf_rat.trainer.hosts.base import Passes, accepted
from hf_rat.trainer.hosts.own_loss import OwnLoss
from hf_rat.trainer.hosts.sentence_transformers import SentencePasses
from hf_rat.trainer.hosts.trl import SFTPasses

__all__ = ["OwnLoss", "Passes", "accepted", "passes_of"]


def passes_of(trainer: Any) -> Passes:
    """The way that fits the class of a trainer."""
    return next(kind for kind in (SFTPasses, SentencePasses, Passes) if kind.fits(trainer))(trainer)

"""How a class of Trainers runs one pass with its own loss, so that a regularizer can ask for several."""

from typing import Any

from hf_rat.trainer.hosts.base import Host, select_arguments
from hf_rat.trainer.hosts.own_loss import OwnLoss
from hf_rat.trainer.hosts.sentence_transformers import SentenceHost
from hf_rat.trainer.hosts.trl import SFTHost

__all__ = ["Host", "OwnLoss", "host_of", "select_arguments"]


def host_of(trainer: Any) -> Host:
    """The way that fits the class of a trainer."""
    return next(kind for kind in (SFTHost, SentenceHost, Host) if kind.fits(trainer))(trainer)

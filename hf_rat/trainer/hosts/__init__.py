"""Each host knows how a class of Trainers makes one pass with its own loss, so that a regularizer may ask for more."""

from typing import Any

from hf_rat.trainer.hosts.base import Host, select_arguments
from hf_rat.trainer.hosts.own_loss import OwnLoss
from hf_rat.trainer.hosts.sentence_transformers import SentenceHost
from hf_rat.trainer.hosts.trl import SFTHost

__all__ = ["Host", "OwnLoss", "host_of", "select_arguments"]


def host_of(trainer: Any) -> Host:
    """The host that knows the class of a trainer."""
    return next(kind for kind in (SFTHost, SentenceHost, Host) if kind.fits(trainer))(trainer)

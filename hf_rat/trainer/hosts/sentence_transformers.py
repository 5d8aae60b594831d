"""sentence-transformers' `SentenceTransformerTrainer` behind the mixin: a loss of the embeddings of several texts.

An example is one row, all of its columns: anchor, positive, negative. Its perturbation is one, over the words of all
of them. There are no predictions that passes could agree on, and copies of the batch would be negatives of each other:
what compares passes, or averages several at one point, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.sites import EMBEDDINGS, is_weights
from hf_rat.regularizers.recipe import recipes_that
from hf_rat.regularizers.terms import TaskLoss, Term, all_terms, compares_logits, is_plain
from hf_rat.trainer.hosts.base import Host, is_a


def needs_predictions(regularizer: Term) -> bool:
    """Whether a regularizer compares predictions, or averages the task loss of several passes."""
    tasks = [term for term in all_terms(regularizer) if isinstance(term, TaskLoss)]
    return compares_logits(regularizer) or any(task.passes > 1 for task in tasks)


def _is_known(site: str | None) -> bool:
    return site == EMBEDDINGS or is_weights(site or "")


class SentenceHost(Host):
    """Makes passes through the `compute_loss` of a trainer of sentence-transformers.

    The components of a loss that has several are logged of the first pass over each micro-batch.
    """

    is_timed = False

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self._due = False

    @classmethod
    def fits(cls, trainer: object) -> bool:
        return is_a(trainer, "sentence_transformers.base.trainer", "BaseTrainer")

    def require(self, regularizer: Term) -> None:
        """Refuse all but perturbations of the words under the task loss, and losses of anything but sentences."""
        if is_plain(regularizer):
            return
        if not is_a(self.trainer, "sentence_transformers.sentence_transformer.trainer", "SentenceTransformerTrainer"):
            raise ValueError(
                f"{regularizer!r} with {type(self.trainer).__name__}: of sentence-transformers' trainers only "
                "SentenceTransformerTrainer can be regularized; train a classifier with RegularizedTrainer"
            )
        if needs_predictions(regularizer):
            usable = recipes_that(lambda term: not (is_plain(term) or needs_predictions(term)))
            raise ValueError(
                f"{regularizer!r} compares or repeats predictions, and a loss of sentence embeddings has none; "
                f"use one of {', '.join(usable)}"
            )
        for term in all_terms(regularizer):
            if term.perturb is not None and not _is_known(term.perturb.site):
                raise ValueError(
                    f"{regularizer!r} perturbs a SentenceTransformer elsewhere than in its words or weights; "
                    'use site="embeddings" or site="weights"'
                )

    def begin(self, inputs: Mapping[str, Any]) -> None:
        self._due = True

    def has_task(self, inputs: Mapping[str, Any]) -> bool:
        return True

    def task(
        self, compute_loss: Callable[..., Any], model: nn.Module, inputs: Mapping[str, Any], with_outputs: bool = False
    ) -> tuple[Tensor, Any]:
        trainer = self.trainer
        if with_outputs:
            answer: tuple[Tensor, Any] = compute_loss(model, dict(inputs), return_outputs=True)
            return answer
        kept = {
            mode: {name: value.clone() for name, value in parts.items()}
            for mode, parts in trainer.accum_loss_components.items()
        }
        loss = compute_loss(model, dict(inputs))
        if not (self._due and torch.is_grad_enabled()) and not trainer.regularization.is_plain:
            trainer.accum_loss_components = kept
        self._due = self._due and not torch.is_grad_enabled()  # a look at the model is no pass
        # In the place of predictions, which nothing here may ask for.
        return loss, SimpleNamespace(logits=loss.reshape(1, 1))

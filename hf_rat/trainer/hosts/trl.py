"""TRL's `SFTTrainer` behind the mixin: passes that keep their logits, under its own losses and metrics.

Its fused head scores the labels without building logits, and where outputs are asked for it runs the model once more,
without a graph: a divergence of those would teach nothing. A regularizer that compares predictions runs the model once
per pass, in its ordinary way, and what the head would have said is read from the logits. One that asks for task losses
alone (fgm, pgd, freelb, neftune) keeps the fused head, as `plain` and evaluation do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rat.passes.problems import IGNORED
from hf_rat.regularizers.terms import Term, compares_logits, is_plain
from hf_rat.trainer.hosts.base import Host, is_a

_ROWS_AT_A_TIME = 256


class SFTHost(Host):
    """Passes through the `compute_loss` of an `SFTTrainer`.

    Its metrics (entropy, mean_token_accuracy, num_tokens) are those of the first pass over each micro-batch.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self._rows = 0
        self._due = False
        self._fused = False

    @classmethod
    def fits(cls, trainer: object) -> bool:
        return is_a(trainer, "trl.trainer.sft_trainer", "SFTTrainer")

    def require(self, regularizer: Term) -> None:
        """Refuse several examples in one row, activations kept for one backward only, and a loss function."""
        trainer = self.trainer
        self._fused = not compares_logits(regularizer)
        if trainer.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func with SFTTrainer, which deprecates it: override compute_loss in a subclass of "
                "SFTTrainer and put RegularizationMixin in front of that"
            )
        if is_plain(regularizer):
            return
        if trainer.padding_free:
            raise ValueError(
                f"{regularizer!r} asks something of every example, and padding_free (or packing with the strategy "
                f"{trainer.args.packing_strategy!r}) puts several into one row; set packing=False, or "
                'packing_strategy="wrapped", where a row is one example, and padding_free=False'
            )
        if trainer.args.activation_offloading:
            raise ValueError(
                f"activation_offloading=True keeps activations for one backward, and {regularizer!r} makes several; "
                "use gradient checkpointing"
            )

    def begin(self, inputs: Mapping[str, Any]) -> None:
        self._rows, self._due = len(inputs["input_ids"]), True

    def task(
        self, compute_loss: Callable[..., Any], model: nn.Module, inputs: Mapping[str, Any], with_outputs: bool = False
    ) -> tuple[Tensor, Any]:
        trainer = self.trainer
        if trainer.model.training and trainer.regularization.is_plain:
            answer = compute_loss(model, dict(inputs), return_outputs=with_outputs)
            return answer if with_outputs else (answer, None)
        called = model if self._fused else _Once(model)
        metrics, tokens = trainer._metrics, trainer._total_train_tokens
        trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        try:
            loss = compute_loss(called, dict(inputs))
            heard = trainer._metrics["train"]
        finally:
            seen, trainer._total_train_tokens = trainer._total_train_tokens - tokens, tokens
            trainer._metrics = metrics
        if self._due and trainer.model.training and torch.is_grad_enabled():
            self._due = False
            # Several dropout passes may run as one batch.
            trainer._total_train_tokens += seen * self._rows // len(inputs["input_ids"])
            heard["num_tokens"] = [trainer._total_train_tokens]
            for name, values in heard.items():
                metrics["train"][name] = values if name == "num_tokens" else metrics["train"][name] + values
        # With the fused head there are no predictions, and nothing asks for them.
        return loss, called.outputs if isinstance(called, _Once) else SimpleNamespace(logits=loss.reshape(1, 1))


class _Once:
    """Stands for the model in `compute_loss`: runs it once, and answers every call from that."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.outputs: Any = None

    def __call__(self, fused_lm_head: bool = False, labels: Tensor | None = None, **inputs: Any) -> Any:
        if self.outputs is None:
            self.outputs = self._model(**{name: x for name, x in inputs.items() if name != "shift_labels"})
        return _scored(self.outputs, labels, inputs.get("shift_labels")) if fused_lm_head else self.outputs


def _scored(outputs: Any, labels: Tensor | None, shift_labels: Tensor | None) -> SimpleNamespace:
    """What TRL's fused head returns: per position, 0 where the (next) label is -100."""
    logits = outputs.logits
    if shift_labels is None:
        assert labels is not None
        # Virtual tokens of prompt learning come first and have no labels.
        labels = F.pad(labels, (logits.shape[1] - labels.shape[1], 0), value=IGNORED)
        logits, shift_labels = logits[:, :-1], labels[:, 1:]
    mask = shift_labels != IGNORED
    kept, targets = logits[mask].float(), shift_labels[mask]

    def spread(x: Tensor) -> Tensor:
        return x.new_zeros(mask.shape).masked_scatter(mask, x)

    with torch.no_grad():
        entropy = [-(F.softmax(z, -1) * F.log_softmax(z, -1)).sum(-1) for z in kept.split(_ROWS_AT_A_TIME)]
    return SimpleNamespace(
        log_probs=spread(-F.cross_entropy(kept, targets, reduction="none")),
        entropy=spread(torch.cat(entropy)),
        is_top1=spread(kept.argmax(-1) == targets),
        label_mask=mask,
        aux_loss=getattr(outputs, "aux_loss", None),
    )

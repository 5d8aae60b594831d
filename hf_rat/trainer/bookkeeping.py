"""Where the Trainer's loop is, and the regularizer's state in its checkpoints."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

STATE_KEY = "hf_rat"
"""Where a checkpoint's trainer_state.json keeps the regularizer's state, under `stateful_callbacks`."""


class Bookkeeping(TrainerCallback):
    """Calls a trainer with the mixin when a run, a micro-batch or a step begins or ends.

    Args:
        trainer: with `RegularizationMixin` in front.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._in_first_step = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._in_first_step = True
        self._trainer._begin_run()
        saved = state.stateful_callbacks.get(STATE_KEY)
        if self._trainer._resumed_from is not None and isinstance(saved, dict):
            self._trainer._require_same_average(saved["attributes"])
            self._trainer.regularization.load_state_dict(saved["attributes"])
            if self._trainer._unlabeled is not None:
                self._trainer._unlabeled.made = int(saved["attributes"].get("unlabeled_batches", 0))
        self._store(state)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._skip_nonfinite_step(kwargs["model"])

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._announce_what_was_seen()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._announce_what_was_seen()
        # What the loss scale of fp16 or a gradient that is not finite skipped has changed no weights.
        skipped = self._trainer.accelerator.optimizer_step_was_skipped or not self._trainer._gradients_finite
        self._trainer._end_step(changed=not skipped)
        self._store(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._end_average()

    def _announce_what_was_seen(self) -> None:
        if self._in_first_step:
            self._trainer._announce()
        self._in_first_step = False

    def _store(self, state: Any) -> None:
        kept = self._trainer.regularization.state_dict() | self._trainer._average_state()
        if self._trainer._unlabeled is not None:
            kept["unlabeled_batches"] = self._trainer._unlabeled.made
        # Handed over as a list of callbacks, kept as a dict of their states.
        state.stateful_callbacks[STATE_KEY] = {"args": {}, "attributes": kept}

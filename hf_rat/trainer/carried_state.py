"""A trainer of texts that are longer than a window: each batch starts from the state that the last one ended with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from hf_rat.passes.problems import IGNORED
from hf_rat.regularizers.ahead import sites_ahead
from hf_rat.regularizers.algebra import FULL_STRENGTH
from hf_rat.regularizers.terms import Term
from hf_rat.trainer.trainer import RegularizationMixin

FILE_NAME = "carried_state.safetensors"
"""In a checkpoint: the state, and in its metadata which windows of which text it belongs to."""

_STATE = "state"


class WholeText(Trainer):
    """The Trainer whose evaluation reads a text from its first window to its last, the state carried on.

    Args:
        scores: name -> a score of the mean loss per scored step, for instance the perplexity.

    The loss is the mean over all scored steps of the split, whatever the windows are. Nothing is predicted: all that
    is kept are sums. `samples` in the speeds are scored steps.
    """

    if TYPE_CHECKING:
        compute_loss: Callable[..., Any]

    def __init__(
        self, *args: Any, scores: Mapping[str, Callable[[float], float]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._scores = dict(scores or {})

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        model: Any = self.model
        model.eval()
        state, total, count = None, 0.0, 0
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in dataloader:
                inputs = self._prepare_inputs(batch)
                scored = int((inputs["shift_labels"] != IGNORED).sum())
                own = inputs if state is None else {**inputs, _STATE: state}
                loss, outputs = self.compute_loss(model, own, return_outputs=True)
                state = state_of(outputs, model)
                if scored:  # elsewhere the mean is one of nothing
                    total, count = total + float(loss) * scored, count + scored
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        mean = total / max(count, 1)
        found = {"loss": mean, **{name: score(mean) for name, score in self._scores.items()}}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=count)


class CarriedStateTrainer(RegularizationMixin, WholeText):
    """Truncated back-propagation: a batch starts from the detached state that the batch before it ended with.

    The data sets are `hf_rat.data.windows.Windows`, or anything whose batches, in order, are windows of one text with
    `input_ids` and `shift_labels`. The model takes `state`, None at first, and returns it; whatever is in it are
    tensors, alone or in (nested) tuples. Every pass of a regularizer starts from one state, and that of the first, the
    clean one, goes on; no pass is made for it. An epoch begins without a state. Checkpoints have it, so that a run
    goes on within an epoch as if it had not been cut.

    Args:
        length: steps of a usual window. The learning rate of a step on windows of another length is that of the
            schedule times their length over this one (Merity et al. 2018). None leaves it as it is.

    Raises:
        ValueError: a regularizer with over="step", which looks at batches before their state is known; or a
            checkpoint that belongs to other windows.
    """

    keep = (_STATE,)

    def __init__(self, *args: Any, length: int | None = None, **kwargs: Any) -> None:
        self.length = length
        self._state: Any = None
        self._steps: list[int] = []
        super().__init__(*args, **kwargs)
        config: Any = getattr(self.model, "config", None)
        if getattr(config, "use_cache", True) is False:  # the Trainer turns it off, and with it the state
            config.use_cache = True
        self.add_callback(_Carrying(self))

    def _refuse(self, regularizer: Term) -> None:
        super()._refuse(regularizer)
        if sites_ahead(regularizer, FULL_STRENGTH):
            raise ValueError(
                f"{regularizer!r} looks at all batches of a step before the first pass, when the state that they "
                'start from is not known yet; use over="microbatch"'
            )

    def _loss_of_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        training = self.is_in_train and model.training and torch.is_grad_enabled() and not self.host.running
        if not training:
            return super()._loss_of_step(model, inputs, return_outputs, num_items_in_batch)
        self._steps.append(inputs["input_ids"].shape[1])
        if self._state is not None:
            inputs = {**inputs, _STATE: self._state}
        answer = super()._loss_of_step(model, inputs, return_outputs, num_items_in_batch)
        after = self.regularization.kept[_STATE]
        # A state that is not finite would spoil every step to come; that step itself changes no weights.
        if all(bool(part.isfinite().all()) for part in flatten(after).values()):
            self._state = after
        return answer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None and self.args.should_save and self._state is not None:
            parts = {name: part.contiguous().cpu() for name, part in flatten(self._state).items()}
            save_file(parts, str(Path(output_dir) / FILE_NAME), {"windows": json.dumps(self._windows)})

    @property
    def _windows(self) -> dict[str, Any]:
        return dict(getattr(self.train_dataset, "description", {}))

    def _require_same_windows(self) -> None:
        """Refuse to go on from a checkpoint of other windows."""
        path = Path(str(self._resumed_from)) / FILE_NAME
        if not path.is_file():
            raise ValueError(
                f"resume_from_checkpoint {str(self._resumed_from)!r} has no {FILE_NAME}: it carries no state"
            )
        with safe_open(path, framework="pt") as file:
            before = json.loads((file.metadata() or {}).get("windows", "{}"))
        for name, value in self._windows.items():
            if before.get(name) != value:
                raise ValueError(
                    f"resume_from_checkpoint {str(self._resumed_from)!r}: its windows have {name} "
                    f"{before.get(name)!r}, those of this run {value!r}: the place in the text would be another one"
                )

    def _begin_epoch(self, goes_on: bool) -> None:
        """Start a text anew, or within it from the state of the checkpoint."""
        self._state = None
        if goes_on:
            with safe_open(Path(str(self._resumed_from)) / FILE_NAME, framework="pt", device="cpu") as file:
                parts = {name: file.get_tensor(name).to(self.args.device) for name in file.keys()}  # noqa: SIM118
            self._state = unflatten(parts)


class _Carrying(TrainerCallback):
    """Tells the trainer where a text begins, and gives each step the learning rate of its windows' length."""

    def __init__(self, trainer: CarriedStateTrainer) -> None:
        self._trainer = trainer
        self._resumed = False
        self._rates: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._resumed = self._trainer._resumed_from is not None
        if self._resumed:
            self._trainer._require_same_windows()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._begin_epoch(goes_on=self._resumed and float(state.epoch or 0) % 1 > 0)
        self._resumed = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps, self._trainer._steps = self._trainer._steps, []
        if self._trainer.length is None:
            return
        groups = kwargs["optimizer"].param_groups
        self._rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * sum(steps) / len(steps) / self._trainer.length

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for group, rate in zip(kwargs["optimizer"].param_groups, self._rates, strict=False):
            group["lr"] = rate
        self._rates = []


def state_of(outputs: Any, model: nn.Module) -> Any:
    """The state in a model's output.

    Raises:
        ValueError: there is none.
    """
    found = outputs.get(_STATE) if isinstance(outputs, Mapping) else getattr(outputs, _STATE, None)
    if found is None:
        raise ValueError(f"{type(model).__name__} returned no {_STATE!r}, which the next window would start from")
    return found


def flatten(state: Any, name: str = _STATE) -> dict[str, Tensor]:
    """The tensors of a state, by their place: "state.0.1" is the second in the first tuple."""
    if isinstance(state, Tensor):
        return {name: state}
    return {key: x for place, part in enumerate(state) for key, x in flatten(part, f"{name}.{place}").items()}


def unflatten(parts: Mapping[str, Tensor], name: str = _STATE) -> Any:
    """The state again, in plain tuples."""
    if name in parts:
        return parts[name]
    count = len({key[len(name) + 1 :].partition(".")[0] for key in parts if key.startswith(f"{name}.")})
    return tuple(unflatten(parts, f"{name}.{place}") for place in range(count))

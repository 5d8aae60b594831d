"""An average of the weights that is evaluated, chosen by, saved and pushed in the place of the weights themselves."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy

from hf_rat.engine.averaged_model import AveragedWeights, load_raw
from hf_rat.engine.regularization import Regularization
from hf_rat.engine.requirements import require_whole_weights
from hf_rat.regularizers.averages import Average, average_of
from hf_rat.regularizers.expressions import parse
from hf_rat.regularizers.terms import Term

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

logger = logging.getLogger(__name__)


def read_average(text: str) -> Average:
    """The average that a text describes.

    Raises:
        ValueError: it describes none.
    """
    if found := re.fullmatch(r"\s*nt_asgd\(\s*(\d+)\s*\)\s*", text):
        return Average("nt_asgd", int(found[1]))
    try:
        average = average_of(parse(text)) if re.fullmatch(r"\s*(ema|swa)\([^()]+\)\s*", text) else None
    except ValueError:
        average = None
    if average is None:
        raise ValueError(
            f'average={text!r} must be "ema(0.99)", a moving average that keeps 0.99 of itself at each step, or '
            '"swa(0.5)", the mean of the weights after each step of the second half; the number lies between 0 and 1. '
            '"swa(0.5, below=0.2)" waits until the task loss is below 0.2 of what it was at first. '
            'Or "nt_asgd(5)": that mean, once an evaluation is worse than the best of all before it but the last 5'
        )
    return average


class Averaging(_Base):
    """Base of the mixin: evaluates and saves the average of the weights, while training goes on from the weights."""

    _given_average: Average | None = None
    _average: AveragedWeights | None = None  # while a run trains
    _taken = 0
    _resumed_from: str | None
    _regularization: Regularization | None

    if TYPE_CHECKING:

        @property
        def regularizer(self) -> Term: ...

        @property
        def regularization(self) -> Regularization: ...

    @property
    def average(self) -> Average | None:
        """What is averaged, as it is now described."""
        said, asked = getattr(self.args, "average", None), average_of(self.regularizer)
        named = {
            f"average={self._given_average!r}": self._given_average,
            f"args.average={said!r}": None if said is None else read_average(said),
            f"{asked!r} in the regularizer": asked,
        }
        found = {name: rule for name, rule in named.items() if rule is not None}
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found)}: the weights have one average; keep one")
        return next(iter(found.values()), None)

    def _require_one_average(self) -> None:
        """Refuse several averages before anything is trained."""
        _ = self.average

    @property
    def averaged_steps(self) -> int:
        """Of how many optimizer steps the model that is evaluated and saved now is the average; 0 if it is none."""
        return self._taken if self._average is None else self._average.updates

    # -- where the model is read -------------------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, of the averaged model."""
        with self._averaged():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's, of the averaged model; a checkpoint has the averages and the weights themselves beside it.

        They must be there before the Trainer writes the state that makes a checkpoint whole, and deletes older ones.
        """
        with self._averaged():
            super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None and self.args.should_save:
            teacher = self._teacher
            if teacher is not None:
                teacher.save(output_dir)
            if self._regularization is not None:
                self._regularization.weights.save(output_dir)
            if self._average is not None:
                if self._average is not teacher:
                    self._average.save(output_dir)
                self._average.save_raw(self.regularization.unwrapped, output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        load_raw(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self._average is not None:  # which engines that have checkpoints of their own have not loaded
            self._average.load(str(self.state.best_model_checkpoint))
            self._end_average()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model has the averages inside, as soon as there are any."""
        if self._average is None or self._average.updates == 0:
            yield
        else:
            with self._average.applied(self.regularization.unwrapped):
                yield

    # -- what a run begins and ends with -----------------------------------------------------------------------------

    @property
    def _teacher(self) -> AveragedWeights | None:
        return None if self._regularization is None else self._regularization.teacher

    def _begin_average(self) -> None:
        """Of a new run; the average that a term keeps is taken if it is the same one."""
        rule, model = self.average, self.regularization.unwrapped
        teacher = self._teacher
        if teacher is not None and self._resumed_from is not None:
            teacher.load(self._resumed_from)
        self._average, self._taken = None, 0
        if rule is None:
            return
        if rule.below is not None:
            self.regularization.schedule.watch_loss(rule.below, f"average={str(rule)!r}")
        require_whole_weights(f"average={str(rule)!r}", self.model_wrapped)
        if rule.kind == "nt_asgd" and self.args.eval_strategy == IntervalStrategy.NO:
            raise ValueError(f"average={str(rule)!r} begins when an evaluation says so; set eval_strategy, to 'epoch'")
        if teacher is not None and teacher.beta == rule.beta:
            self._average = teacher
            return
        self._average = AveragedWeights(model, rule.beta, runs=False)
        if self._resumed_from is not None:
            self._average.load(self._resumed_from)

    def _average_state(self) -> dict[str, Any]:
        """What a checkpoint says of the average, beside its weights."""
        rule = self.average
        return {} if rule is None else {"average": repr(rule), "average_begin": rule.begin(self.state.max_steps)}

    def _require_same_average(self, saved: Mapping[str, Any]) -> None:
        """Refuse to go on with another average than that of the checkpoint.

        Raises:
            ValueError: another one, none, or one that begins at another step, as the run has another length.
        """
        now, before = self._average_state(), saved.get("average")
        if now.get("average") != before:
            raise ValueError(f"average={now.get('average')!r}, and the checkpoint was made with average={before!r}")
        if now.get("average_begin") != saved.get("average_begin"):
            raise ValueError(
                f"average={before!r} began after step {saved['average_begin']} of the run that made the checkpoint, "
                f"and begins after step {now['average_begin']} of {self.state.max_steps}: keep the number of steps"
            )

    def _end_step(self, changed: bool) -> None:
        """After each optimizer step, whether it changed the weights or not."""
        self.regularization.after_step(changed)
        if changed:
            self._move_average()

    def _move_average(self) -> None:
        """After an optimizer step that changed the weights."""
        rule = self.average
        if self._average is None or rule is None or self._average is self._teacher:
            return
        begin = rule.begin(self.state.max_steps, self._evaluations(rule) if rule.kind == "nt_asgd" else ())
        if begin is None or self.state.global_step <= begin:
            return
        fall = self.regularization.schedule.fall
        if rule.below is None or (fall is not None and fall.fallen < rule.below):
            self._average.update(self.regularization.unwrapped)

    def _evaluations(self, rule: Average) -> list[tuple[int, float]]:
        """(optimizer steps before it, what the best model is chosen by, less is better) of each evaluation so far.

        They are those of the log, which a checkpoint keeps.

        Raises:
            ValueError: evaluations do not give what the best model is chosen by.
        """
        name = f"eval_{(self.args.metric_for_best_model or 'loss').removeprefix('eval_')}"
        sign = -1.0 if self.args.greater_is_better else 1.0
        logs = [log for log in self.state.log_history if any(key.startswith("eval_") for key in log)]
        found = [(int(log["step"]), sign * log[name]) for log in logs if name in log]
        if logs and not found:
            given = ", ".join(key for key in logs[0] if key.startswith("eval_"))
            raise ValueError(
                f"average={str(rule)!r} reads {name}, and evaluations give {given}: set metric_for_best_model to one"
            )
        return found

    def _end_average(self) -> None:
        """The model becomes the averaged one."""
        if self._average is None:
            return
        self._taken = self._average.updates
        if self._taken:
            self._average.copy_to(self.regularization.unwrapped)
        else:
            fall = self.regularization.schedule.fall
            logger.warning(
                "average=%r: no weights were averaged by step %s, the model has its own%s.",
                self.average,
                self.state.best_global_step if self.args.load_best_model_at_end else self.state.global_step,
                "" if fall is None else f": the task loss has fallen to {fall.fallen:.2f} of what it was at first",
            )
        self._average = None

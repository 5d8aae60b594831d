"""The seam to the Hugging Face Trainer: `compute_loss`, `log`, and what a run must begin and end with."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from hf_rat.engine.regularization import Regularization
from hf_rat.engine.requirements import given_problem, require_arguments
from hf_rat.engine.schedule import Schedule
from hf_rat.engine.weighting import weigh
from hf_rat.regularizers.expressions import as_term
from hf_rat.regularizers.recipes import plain
from hf_rat.regularizers.terms import Term, is_plain
from hf_rat.regularizers.unlabeled import Unlabeled
from hf_rat.trainer.announcement import Announcer, announcement
from hf_rat.trainer.average import Averaging, read_average
from hf_rat.trainer.bookkeeping import Bookkeeping
from hf_rat.trainer.by_layer import ByLayer
from hf_rat.trainer.clipping import Clipping
from hf_rat.trainer.components import Components
from hf_rat.trainer.decay import Decay
from hf_rat.trainer.dropout_schedule import DropoutSchedule
from hf_rat.trainer.fast import faster
from hf_rat.trainer.hosts import OwnLoss, host_of, select_arguments
from hf_rat.trainer.model_card import complete_card
from hf_rat.trainer.speed import step_price
from hf_rat.trainer.training_args import RegularizedTrainingArguments, refuse_fields, require_one_description
from hf_rat.trainer.trials import check_space
from hf_rat.trainer.unlabeled_batches import UnlabeledBatches


class RegularizationMixin(Averaging, ByLayer, Clipping, Decay, OwnLoss):
    """Put in front of a Trainer class: `class MyTrainer(RegularizationMixin, Seq2SeqTrainer)`.

    A `compute_loss` that a subclass defines, or the class behind the mixin, is the task loss of one pass.

    Args:
        regularizer: a term, for instance `rat(epsilon=0.1)`, or its text, "rat(epsilon=0.1)". None builds it from
            `args.reg` and `args.reg_*`, or is `plain()`, with a warning, when `args` is a bare TrainingArguments. All
            other arguments are the Trainer's.
        problem: the kind of task, as of `Regularization`; the same as `args.reg_problem`.
        unlabeled_dataset: one batch of it, without labels, goes beside each training batch: what the regularizer asks
            that needs no labels is asked of both, with the same weight.
        average: "ema(0.99)", "swa(0.5)" or "nt_asgd(5)", as `args.average`: the average of the weights that is
            evaluated, chosen by, saved and pushed, and is the model's when training has ended.

    Losses are means over the micro-batch, divided by the number of micro-batches and averaged over processes, exactly
    once. (The stock Trainer 5.23 leaves out that division for classification heads and multiplies by the number of
    processes, because their `forward` takes **kwargs.) Where labels are by position (language models, token
    classification), each micro-batch counts by its labelled positions, so that an optimizer step is the mean over all
    of them, of all processes if `average_tokens_across_devices`, for every loss alike. Evaluation is the Trainer's.
    """

    card_example: Any = "A text."  # for the code on the model card; two texts are {"text": ..., "text_pair": ...}
    keep: Sequence[str] = ()  # outputs of the model that `regularization.kept` has after each micro-batch

    # The Trainer must neither skip the division by the accumulation steps nor pass num_items_in_batch on.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        regularizer: Term | str | None = None,
        problem: str | None = None,
        unlabeled_dataset: Any = None,
        average: str | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_fields(type(self).__name__, kwargs)
        given = None if regularizer is None else as_term(regularizer)
        self._given_average = None if average is None else read_average(average)
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.current_gradient_accumulation_steps = 1  # until `train` begins
        self._given_regularizer = given
        self._problem = given_problem(problem, self.args)
        self._unlabeled_dataset = unlabeled_dataset
        self._unlabeled: UnlabeledBatches | None = None
        self._regularization: Regularization | None = None
        self._resumed_from: str | None = None
        self._num_labels: Tensor | None = None
        self._step_ahead: list[Any] = []
        self._components = Components()
        self._gradients_finite = True
        self._announcer = Announcer(heard=False)
        self.host = host_of(self)
        self._refuse(self.regularizer)
        self._enter_by_compute_loss()
        self.add_callback(Bookkeeping(self))
        if given is None and not isinstance(self.args, RegularizedTrainingArguments):
            warnings.warn(
                f"{type(self).__name__} got no regularizer and trains plainly; give it one, for instance "
                "regularizer=rat(), or regularizer=plain() to say so",
                stacklevel=2,
            )

    @property
    def regularizer(self) -> Term:
        """The regularizer, as it is now described: a hyperparameter search changes `args` between runs."""
        if self._given_regularizer is not None:
            require_one_description(self._given_regularizer, self.args)
            return self._given_regularizer
        return self.args.regularizer() if isinstance(self.args, RegularizedTrainingArguments) else plain()

    @property
    def regularization(self) -> Regularization:
        """The regularizer at work on the current model; opened on first use and anew by each `train()`."""
        if self._regularization is None:
            self._refuse(self.regularizer)
            self._regularization = Regularization(
                self.regularizer,
                self.model_wrapped,
                accelerator=self.accelerator,
                run=self.host.run,
                single_backward=getattr(self.args, "reg_single_backward", False) or None,
                length_buckets="off" if self._has_own_loss else getattr(self.args, "length_buckets", "auto"),
                memory=getattr(self.args, "reg_memory", "fast"),
                keep=self.keep,
                problem=self._problem,
                optimizer=self.optimizer,
                total_steps=self._total_steps,
                averages=True,
            )
        return self._regularization

    @property
    def _total_steps(self) -> int | None:
        """Optimizer steps of the run, known once it has begun, before that if `max_steps` says so."""
        steps = self.state.max_steps if self.is_in_train else self.args.max_steps
        return steps if steps > 0 else None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint is True:
            self._resumed_from = get_last_checkpoint(str(self.args.output_dir))
        else:
            self._resumed_from = resume_from_checkpoint or None
        try:
            with faster(self.args):
                trained = super().train(resume_from_checkpoint, *args, **kwargs)
                trained.metrics.update(self._components.over_the_run(self.state.global_step, self.accelerator))
                trained.metrics.update(step_price(self))
            return trained
        finally:
            self._close_regularization()
            self._average = None
            self._num_labels, self.current_gradient_accumulation_steps = None, 1
            for schedule in self.callback_handler.callbacks:
                if isinstance(schedule, DropoutSchedule):
                    schedule.restore()

    def hyperparameter_search(self, hp_space: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; refuses to vary what would change nothing."""
        space = None if hp_space is None else check_space(hp_space, self.args, self._given_regularizer)
        return super().hyperparameter_search(space, *args, **kwargs)

    def _loss_of_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """`compute_loss` of an instance. What `training_step` divides, back-propagates and logs; else the task loss.

        In training, every group of passes but the last is already back-propagated when this returns.
        """
        if self.host.running:  # a loss that was assigned calls the one that it replaced
            return type(self).compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        alone = not self.is_in_train and is_plain(self.regularizer)  # there are no other micro-batches
        if alone or not (model.training and torch.is_grad_enabled()):
            given = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
            return self._task_loss(model, inputs, **select_arguments(self._task_loss, **given))
        accumulation = self.current_gradient_accumulation_steps
        if self.regularization.is_plain:
            weighting = self.regularization.weighting
            self.regularization.keeper.begin()
            with self.regularization.keeper.watching():
                loss, outputs = self.host.task(self._task_loss, model, inputs, return_outputs)
            weight = weighting.weight(inputs, self._num_labels, accumulation)
            named = weigh({"task": weighting.mean(loss, inputs)}, weight)
            self.regularization.schedule.see(named, self.state.global_step)
            return (named["task"], outputs) if return_outputs else named["task"]
        if return_outputs:
            raise ValueError(
                f"compute_loss(return_outputs=True) in training: {self.regularizer!r} has the outputs of several "
                "passes; leave return_outputs at False, or call model.eval() first"
            )
        # Taken first: an error in there leaves none of them for another step.
        samples, self._step_ahead = self._step_ahead, []
        if samples:
            prepared = (self._prepare_inputs(sample) for sample in samples)
            self.regularization.begin_step(prepared, step=self.state.global_step, num_labels=self._num_labels)
        self.host.begin(inputs)
        unlabeled = None if self._unlabeled is None else self._prepare_inputs(self._unlabeled.next())
        loss, named = self.regularization.backward_all_but_last(
            inputs,
            unlabeled=unlabeled,
            step=self.state.global_step,
            accumulation=accumulation,
            num_labels=self._num_labels,
        )
        self._components.add(named, accumulation)
        return loss if named else loss + math.nan  # of value NaN, as the stock Trainer's; its gradient is zero

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The Trainer's; counts the labelled positions of the optimizer step."""
        samples, given = super().get_batch_samples(epoch_iterator, num_batches, device)
        weighting = self.regularization.weighting
        if samples and weighting.must_ask(samples[0]):
            weighting.problem(self._prepare_inputs(samples[0]))
        if samples and not self._announcer.has_told:
            self._announce(samples[0])
        self._num_labels = weighting.find_num_labels(samples, across=self.args.average_tokens_across_devices)
        self._step_ahead = list(samples)
        if self._num_labels is not None and self.is_deepspeed_enabled:  # the Trainer tells it not to divide by them
            self._num_labels = self._num_labels * self.accelerator.gradient_accumulation_steps
        return samples, given

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's; adds `loss_<component>`, averaged as `loss` is, `nonfinite_steps` and `reg_epsilon`."""
        if "loss" in logs and self._regularization is not None:
            logs = {**logs, **self._components.take(self.state.global_step, self.accelerator)}
            if not self._regularization.is_plain or self._regularization.nonfinite.steps:
                logs["nonfinite_steps"] = self._regularization.nonfinite.steps
            logs |= self._regularization.adaptive.logs()
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args: Any, tags: str | list[str] | None = None, **kwargs: Any) -> None:
        """The Trainer's model card with the tag hf-rat, completed: see `hf_rat.trainer.model_card.complete_card`."""
        given = {**dict(zip(("language", "license"), args, strict=False)), **kwargs}
        given["tags"] = [*([tags] if isinstance(tags, str) else tags or []), "hf-rat"]
        super().create_model_card(**given)
        if self.is_world_process_zero():
            complete_card(Path(str(self.args.output_dir)) / "README.md", self, self.card_example, given)

    # -- what a run begins and ends with -----------------------------------------------------------------------------

    def _begin_run(self) -> None:
        """Open the regularizer on the model as it is now: after a trial's values, after wrapping, before compiling."""
        self._close_regularization()
        self._components = Components(self.state.global_step)
        regularization = self.regularization
        if self._unlabeled_dataset is not None:
            self._unlabeled = UnlabeledBatches.beside(self, self._unlabeled_dataset)
        if self._resumed_from is not None:
            regularization.weights.load(self._resumed_from)
        self._begin_average()
        self._begin_by_layer()
        quiet = self.args.get_process_log_level() > logging.WARNING
        self._announcer = Announcer(heard=self.is_world_process_zero() and not quiet)

    def _announce(self, first_batch: Mapping[str, Any] | None = None) -> None:
        """Before the first pass, with its batch, and after it; what has been told is not told again."""
        if first_batch is not None and self.regularization.weighting.is_certain(first_batch):
            self.regularization.weighting.problem(first_batch, ask=False)
        unlabeled = self._unlabeled_dataset is not None
        self._announcer.tell_new(announcement(self.regularization, self.args, unlabeled, self.average))

    def _close_regularization(self) -> None:
        if self._regularization is not None:
            self._regularization.close()
            self._regularization = None

    def _refuse(self, regularizer: Term) -> None:
        """What the regularizer cannot be right under."""
        if self._unlabeled_dataset is not None:
            Unlabeled(regularizer)
        if self.args.max_steps > 0:
            Schedule(regularizer, self.args.max_steps)
        require_arguments(regularizer, self.args)
        self.host.require(regularizer)
        self._require_one_average()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self._gradients_finite = math.isfinite(float(norm))
        return norm

    def _skip_nonfinite_step(self, model: nn.Module) -> None:
        """Take non-finite gradients away, so that the optimizer step changes nothing. fp16 leaves it to the scaler."""
        if self.accelerator.scaler is None:
            self.regularization.nonfinite.drop_gradients(model, self.state.global_step, self._gradients_finite)


class RegularizedTrainer(RegularizationMixin, Trainer):
    """The Trainer with a regularizer: change the import, set one flag.

    >>> trainer = RegularizedTrainer(model, args, train_dataset=train, regularizer=rat(epsilon=0.1))  # doctest: +SKIP
    >>> trainer.train()  # logs loss, loss_task, loss_adversarial_task, loss_adversarial_consistency  # doctest: +SKIP
    """

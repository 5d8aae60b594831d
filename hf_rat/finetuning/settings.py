"""Settings of the Trainer that cannot work here: said in one line that names the flag, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from huggingface_hub import constants, get_token
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from hf_rat.data.hub import require_hub
from hf_rat.data.metrics import LOWER_IS_BETTER
from hf_rat.finetuning.blame import blamed, raised_here
from hf_rat.finetuning.flags import Flags

# The least value of flags that nothing checks before it fails, or that would silently do nothing.
_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "eval_accumulation_steps": 1,
    "seed": 0,
    "data_seed": 0,
}
_SEEDS = 2**32  # numpy's
# These take effect in a model's forward, so that an error in the first one is theirs.
_IN_THE_FORWARD = (
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "debug"),
    *("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
)


def require_settings(flags: Flags) -> None:
    """Refuse values that are wrong whatever the model and the data are.

    Raises:
        ValueError: which flag, and what would be right.
    """
    training = flags.training
    for name, least in _LEAST.items():
        value = getattr(training, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}: at least {least} is needed")
    for name in ("seed", "data_seed"):
        if (getattr(training, name) or 0) >= _SEEDS:
            raise ValueError(f"--{name} {getattr(training, name)}: it must be below {_SEEDS}")
    if not 0 <= training.label_smoothing_factor < 1:
        raise ValueError(
            f"--label_smoothing_factor {training.label_smoothing_factor}: at least 0 and below 1 is needed"
        )
    if training.do_train and training.max_steps < 1 and training.num_train_epochs <= 0:
        raise ValueError(
            f"--num_train_epochs {training.num_train_epochs:g}: nothing would be trained; leave --do_train out"
        )
    if training.dataloader_persistent_workers and training.dataloader_num_workers == 0:
        raise ValueError("--dataloader_persistent_workers needs --dataloader_num_workers of at least 1")
    if training.label_names not in (None, ["labels"]):
        raise ValueError(
            f"--label_names {' '.join(training.label_names)}: the labels are called 'labels' here, leave it out"
        )
    if not training.eval_do_concat_batches:
        raise ValueError("--eval_do_concat_batches False: scores are of a whole split, leave it out")
    if training.do_predict and (training.prediction_loss_only or training.batch_eval_metrics):
        name = "prediction_loss_only" if training.prediction_loss_only else "batch_eval_metrics"
        raise ValueError(f"--{name} keeps no predictions, and --do_predict writes them: leave one of the two out")
    if training.save_strategy == SaveStrategy.BEST and training.metric_for_best_model is None:
        raise ValueError("--save_strategy best needs --metric_for_best_model: which score is best, for instance loss")
    if training.save_strategy == SaveStrategy.BEST and training.eval_strategy == IntervalStrategy.NO:
        raise ValueError(
            "--save_strategy best needs --eval_strategy steps or epoch: nothing is scored while it trains"
        )
    if training.push_to_hub:
        _require_push(training)


def _require_push(training: Any) -> None:
    later = "leave it out and push the folder later with `hf upload`"
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"--push_to_hub: HF_HUB_OFFLINE is set; unset it, or {later}")
    require_hub("--push_to_hub", later)
    if training.hub_token is None and get_token() is None:
        raise ValueError("--push_to_hub needs a token of the Hub: `hf auth login`, or --hub_token")


def require_scores(flags: Flags, names: Sequence[str]) -> None:
    """Refuse --metric_for_best_model if no evaluation gives it; settle whether more of it is better.

    Args:
        flags: `training.greater_is_better` is changed unless it was given.
        names: the scores of the validation split, without "eval_".

    Raises:
        ValueError: there is no such score; those that there are, are named.
    """
    training = flags.training
    metric = training.metric_for_best_model
    if metric is None:
        return
    known = ["loss"] if training.prediction_loss_only else ["loss", *names]
    name = metric.removeprefix("eval_")
    if name not in known:
        raise ValueError(f"--metric_for_best_model {metric!r}: the scores of this run are {', '.join(known)}")
    if "greater_is_better" not in flags.given:
        training.greater_is_better = name not in LOWER_IS_BETTER
    plateau = training.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
    needed = training.load_best_model_at_end or plateau or training.save_strategy == SaveStrategy.BEST
    if "metric_for_best_model" in flags.given and not needed:
        raise ValueError(
            f"--metric_for_best_model {metric!r} chooses nothing here: add --load_best_model_at_end (with an "
            "--eval_strategy and the same --save_strategy), or leave it out"
        )


def require_fit(flags: Flags, model: Any, train: Any, regression: bool) -> None:
    """Refuse settings that this model or these data cannot have.

    Args:
        flags: of the run.
        model: the classifier.
        train: encoded training rows, a stream, or None.
        regression: whether labels are numbers.

    Raises:
        ValueError: which flag, and what would be right.
    """
    training = flags.training
    if training.label_smoothing_factor and regression:
        raise ValueError(
            f"--label_smoothing_factor {training.label_smoothing_factor}: it is for classes, and the labels here are "
            "numbers to regress; leave it out"
        )
    checkpointing = "activation" if "activation_checkpointing" in flags.given else "gradient"
    if training.activation_checkpointing and not getattr(model, "supports_gradient_checkpointing", True):
        raise ValueError(f"--{checkpointing}_checkpointing: {type(model).__name__} does not support it, leave it out")
    if training.dataloader_drop_last and isinstance(train, Dataset):
        size = training.train_batch_size * training.world_size
        if len(train) < size:
            raise ValueError(
                f"--dataloader_drop_last: the {len(train)} training rows do not fill one batch of {size}, and nothing "
                "would be trained; leave it out or take a smaller --per_device_train_batch_size"
            )


class Begun(TrainerCallback):
    """Notes how far a training has come."""

    def __init__(self) -> None:
        self.training = self.stepped = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.training = True

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.stepped = True


@contextmanager
def refusals_in_one_line(flags: Flags, begun: Begun | None = None) -> Iterator[None]:
    """What other packages raise about a flag becomes a ValueError of one line; errors of this package stay.

    Args:
        flags: those that were given are searched for the one to blame.
        begun: of a trainer: what is raised once it trains is no flag's, save of those that act in the forward.
    """
    try:
        yield
    except Exception as error:
        at_work = begun is not None and (
            begun.stepped or (begun.training and not any(name in flags.given for name in _IN_THE_FORWARD))
        )
        if at_work or raised_here(error):
            raise
        given = {name: getattr(flags.training, name) for name in flags.given if hasattr(flags.training, name)}
        first = _IN_THE_FORWARD if begun is not None and begun.training else ()
        raise ValueError(blamed(given, error, first)) from error

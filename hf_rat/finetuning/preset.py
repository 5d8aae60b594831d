"""`--preset paper`: the settings that the R-AT paper published for a task, wherever no flag says otherwise."""

from __future__ import annotations

from typing import NamedTuple

from hf_rat.data.task import Task
from hf_rat.finetuning.flags import Flags


class Published(NamedTuple):
    """The published settings of one task.

    Args:
        epsilon: L2 radius of the perturbation, absolute, one norm over the batch (`scope="table"`).
        alpha: weight of the consistency, multiplying a mean over examples.
        learning_rate: peak learning rate.
        batch_size: examples per optimizer step, over all processes and accumulated micro-batches.
        dropout: every dropout rate of the model.
    """

    epsilon: float
    alpha: float
    learning_rate: float
    batch_size: int
    dropout: float = 0.1


# The table gives neither epochs, warm-up nor maximum length: the scripts leave those at their own defaults.
TABLE_7: dict[str, Published] = {
    "cola": Published(0.1, 0.5, 2e-5, 24),
    "sst2": Published(0.1, 0.5, 1e-5, 32),
    "mrpc": Published(0.15, 0.8, 1e-5, 32),
    "stsb": Published(0.1, 0.5, 1e-5, 32),
    "qqp": Published(0.1, 0.5, 2e-5, 32),
    "mnli": Published(0.1, 0.8, 2e-5, 32),
    "qnli": Published(0.15, 0.8, 1e-5, 32),
    "rte": Published(0.1, 0.5, 2e-5, 24),
    "wnli": Published(0.15, 0.5, 1e-5, 16),
}


def apply_paper(flags: Flags, task: Task | None) -> str:
    """Set what Table 7 says and no flag does; a line that tells what was set and what was not.

    The batch size of the table is the total of an optimizer step: it is shared out over processes and accumulated
    micro-batches. With an expression of one's own in --reg, epsilon, alpha, passes and scope are left to that.

    Args:
        flags: changed in place.
        task: must be one of the nine tasks of the table.

    Raises:
        ValueError: the table has no such task, or its batch size cannot be shared out evenly.
    """
    if task is None or task.name not in TABLE_7:
        raise ValueError(f"--preset paper needs a --task_name of Table 7: {', '.join(TABLE_7)}")
    published, training = TABLE_7[task.name], flags.training
    settings: dict[str, object] = {"learning_rate": published.learning_rate, "dropout": published.dropout}
    if "per_device_train_batch_size" not in flags.given:
        parts = training.world_size * training.gradient_accumulation_steps
        if published.batch_size % parts:
            raise ValueError(
                f"--preset paper: the batch size {published.batch_size} of {task.name} cannot be shared out over "
                f"{training.world_size} processes x {training.gradient_accumulation_steps} micro-batches; "
                "give --per_device_train_batch_size"
            )
        settings["per_device_train_batch_size"] = published.batch_size // parts
    if "reg" not in flags.given or training.reg.strip() == "rat":
        settings |= {
            "reg": "rat",
            "reg_epsilon": published.epsilon,
            "reg_alpha": published.alpha,
            "reg_passes": 2,
            "reg_scope": "table",
        }
    done, kept = [], []
    for name, value in settings.items():
        if name in flags.given and name != "reg":
            kept.append(f"--{name}")
            continue
        setattr(flags.model if name == "dropout" else training, name, value)
        done.append(f"{name}={value}")
    if "per_device_train_batch_size" in flags.given:
        kept.append("--per_device_train_batch_size")
    if "reg" not in settings:
        kept.append("--reg")
    return f"Preset paper, task {task.name}: {', '.join(done)}" + (f"; yours: {', '.join(kept)}" if kept else "")

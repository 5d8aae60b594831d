"""Short training runs on tiny models: the data, the arguments, and what a run leaves to compare."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from typing import Any

import tiny
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_rat import RegularizedTrainer, RegularizedTrainingArguments
from hf_rat.regularizers import RECIPES
from hf_rat.regularizers.averages import average_of

# The Trainer collects garbage at the start of each run, which costs more than a run here if it looks at all of torch.
gc.collect()
gc.freeze()

STRONG = {
    "fgm": "fgm(epsilon=0.5)",
    "fgsm": "fgsm(epsilon=0.02)",
    "pgd": "pgd(epsilon=0.5, step=0.2, steps=2)",
    "freelb": "freelb(epsilon=0.4, step=0.2, steps=3, start=0.2)",
    "neftune": "neftune(epsilon=5)",
    "rat": "rat(epsilon=0.5)",
    "vat": "vat(epsilon=0.5, start=0.5)",
    "smart": "smart(epsilon=0.05, step=0.05, start=0.02, beta=0.5)",
    "mean_teacher": "mean_teacher(alpha=9, beta=0.5)",
    "r3f": "r3f(epsilon=0.1)",
    "adversarial_dropout": "adversarial_dropout(rate=0.2)",
    "sam": "sam(epsilon=0.3)",
    "momentum_sam": "momentum_sam(epsilon=0.3)",
    "awp": "awp(epsilon=0.02)",
    "l2_sp": "l2_sp(alpha=5.0)",
    "noisy_tune": "noisy_tune(epsilon=0.5)",
}
"""Recipes whose default arguments add next to nothing to the loss of the tiny model, with others that do."""

SETTINGS = {name: STRONG.get(name, name) for name in RECIPES if not average_of(RECIPES[name]())}
"""Every recipe that asks something of a pass, so strong that what it adds is far from zero on the tiny model."""

AVERAGED = [SETTINGS["smart"], SETTINGS["mean_teacher"]]
"""Those that keep an average of the model."""

COMPOSED = [
    "pgd(epsilon=0.5, step=0.2, steps=2, start=0.1)",
    "rat(epsilons=(0.5, 0.2, 0.1), passes=3, dropouts=(0.1, 0.2, 0.3))",
    "rdrop(passes=3) + 0.5 * vat(epsilon=0.5, start=0.5)",
    "rat(epsilon=0.5, warmup=3) + adversarial_dropout(rate=0.2, start_mask='random', every=3)",
    "fgm(epsilon=0.5, top=1/2) + mean_teacher(alpha=9, beta=0.5)",
    "rdrop(top=1/2)",
    "rat(epsilon=0.5, top=1/2)",
    "fgsm(epsilon=0.5, unit='relative') + rat(epsilon=0.9, unit='relative', target=0.3)",
]

AT_WEIGHTS = ("sam", "asam", "momentum_sam", "awp", "mixout", "l2_sp", "anchor", "noisy_tune")
"""Recipes that read or move whole weights."""

OVER_STEP = {
    "sam": "sam(epsilon=0.3, over='step')",
    "asam": "asam(over='step')",
    "awp": "awp(epsilon=0.02, over='step')",
}
"""Recipes whose loss depends on how a batch is cut, unless they take their slope over the whole step."""

INVARIANT = [*({**SETTINGS, **OVER_STEP}[name] for name in SETTINGS if name != "mixout"), *COMPOSED]
"""Every recipe for which 16 = 4 x 4; mixout draws its weights anew for each micro-batch."""

BY_POSITION = ["plain", SETTINGS["rat"], "vat(epsilon=0.5, start=0.5) + adversarial_dropout(rate=0.2)"]
"""For tasks with a label per position: one of each kind of term."""


def examples(count: int, labels: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
    """Different examples of 4 to 7 tokens, without padding."""
    batch = tiny.tiny_batch(count, 7, labels, seed=seed)
    rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    return [
        {"input_ids": row["input_ids"][row["attention_mask"].bool()].tolist(), "labels": int(row["labels"])}
        for row in rows
    ]


def easy_examples(count: int) -> list[dict[str, Any]]:
    """Examples of 4 to 7 tokens whose label, one of three, is in each of their words."""
    return [{"input_ids": [10 + row % 3] * (4 + row % 4), "labels": row % 3} for row in range(count)]


def collate(rows: list[dict[str, Any]], drop: int = 0) -> dict[str, Tensor]:
    """Pads to the longest of the batch; the last `drop` rows only count for that."""
    longest = max(len(row["input_ids"]) for row in rows)
    rows = rows[: len(rows) - drop]
    padding = [longest - len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.tensor(
            [row["input_ids"] + [tiny.PAD] * missing for row, missing in zip(rows, padding, strict=True)]
        ),
        "attention_mask": torch.tensor([[1] * (longest - missing) + [0] * missing for missing in padding]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


UNLABELED = "rat(epsilon=0.5) + vat(epsilon=0.5, start=0.5) + 0.5 * adversarial_dropout(rate=0.2, base='random')"
"""Asks most things that can be asked of a batch without labels, and some that cannot."""


def collate_any(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Like `collate`, of examples with labels or without."""
    batch = collate([{"labels": -1, **row} for row in rows])
    return batch if all("labels" in row for row in rows) else {k: v for k, v in batch.items() if k != "labels"}


def arguments(**settings: Any) -> RegularizedTrainingArguments:
    """One epoch of plain SGD on the CPU, every step logged, nothing saved."""
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    quiet["no_price"] = True
    simple = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    epoch = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "output_dir": tempfile.gettempdir()}
    return RegularizedTrainingArguments(**{**quiet, **simple, **epoch, **settings})


def trainer(
    reg: str = "plain",
    kind: type[Trainer] = RegularizedTrainer,
    model: nn.Module | None = None,
    count: int = 24,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer of `kind` of a tiny BERT with dropout on `count` examples; `settings` are training arguments."""
    return kind(
        model=tiny.tiny_model(dropout=0.1, _attn_implementation="eager") if model is None else model,
        args=arguments(reg=reg, **settings),
        **{"train_dataset": examples(count), "data_collator": collate, **(options or {})},
    )


@dataclass
class Ran:
    """Logs (one per optimizer step) and weights of a run."""

    logs: list[dict[str, float]]
    weights: dict[str, Tensor]


def run(*args: Any, **kwargs: Any) -> Ran:
    """Build a trainer, train, and return what is left."""
    one = trainer(*args, **kwargs)
    one.train()
    return ran(one)


def ran(one: Trainer) -> Ran:
    logs = [
        {name: value for name, value in log.items() if name.startswith(("loss", "grad_norm", "nonfinite", "reg_"))}
        for log in one.state.log_history
        if "loss" in log
    ]
    return Ran(logs, {name: value.detach().clone() for name, value in one.model.state_dict().items()})


def assert_same_logs(ours: list[dict[str, float]], theirs: list[dict[str, float]], relative: float = 1e-5) -> None:
    assert len(ours) == len(theirs) > 0
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            apart = abs(mine[name] - value)
            # A rise is a difference of losses, in shares of one: it is as exact as they are.
            scale = 1.0 if name.startswith("reg_rise") else max(abs(value), 1e-2)
            assert apart <= relative * scale, f"step {step}, {name}: {mine[name]} and {value}"


def assert_same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), f"{name} differs by {(ours[name] - value).abs().max():.3g}"

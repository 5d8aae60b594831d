"""What a run was trained on, kept in its folder, so that its model can be studied on the same rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_rat.data.whole_files import write_json
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.processes import on_main

FILE = "_data.json"
"""The underscore keeps it out of what is pushed to the Hub, for it names folders of this machine."""
FIELDS = (
    *("task_name", "dataset_name", "dataset_config_name", "data_dir", "train_file", "validation_file", "test_file"),
    *("text_column_names", "label_column_name", "do_regression", "encoding", "quoting", "column_names"),
    *("validation_from_train", "max_seq_length", "train_size", "max_train_samples"),
)
"""The flags that say which rows there are, and how much of them is read."""


def record_data(flags: Flags, task: str) -> None:
    """Write `_data.json` into the folder of a run that has trained.

    Args:
        flags: of the run.
        task: name of the row of its data set; with the seed it also tells which built-in example was made.
    """
    told = {name: value for name in FIELDS if (value := getattr(flags.data, name)) is not None}
    path = Path(str(flags.training.output_dir)) / FILE
    on_main(lambda: write_json(path, {"task": task, "seed": flags.training.seed, "flags": told}))


def recorded_data(folder: Path) -> Mapping[str, Any]:
    """What `record_data` wrote: "task", "seed" and "flags"; of a checkpoint, what lies in the folder of its run.

    Returns:
        Nothing where there is no such file: a run of another program, or of an older version.

    Raises:
        ValueError: the file cannot be read.
    """
    path = (folder.absolute().parent if folder.name.startswith(PREFIX_CHECKPOINT_DIR) else folder) / FILE
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {"task": str(told["task"]), "seed": int(told["seed"]), "flags": dict(told["flags"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it, and name the data by flags") from error

"""What is studied: a trained model, its tokenizer, and the rows that it is asked about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from hf_rat.analysis.rows import TRAINED_ON, Rows, flags_of, read_rows
from hf_rat.data.encoding import Labels
from hf_rat.finetuning.checkpoints import checkpoint_problem
from hf_rat.finetuning.data_record import FIELDS, recorded_data
from hf_rat.finetuning.flags import ModelArguments
from hf_rat.finetuning.pretrained import load_model, load_pretrained

_LENGTH = 128
_ADAPTER = "adapter_config.json"
_OWN = ("data_dir", "max_seq_length", "train_size", "max_train_samples")


@dataclass(frozen=True)
class Subject:
    """One model with the rows that it is asked about.

    Args:
        name: what it is called in tables and pictures: as much of the end of its folder's path as tells it apart.
        folder: of the run, or of one of its checkpoints.
        model: in evaluation mode, on its device.
        tokenizer: of the model.
        labels: the label set of the rows, as the model numbers it.
        rows: the same for all subjects of a study.
        max_length: tokens of an example at most.
        batch_size: examples of a batch.
    """

    name: str
    folder: Path
    model: Any
    tokenizer: PreTrainedTokenizerBase
    labels: Labels
    rows: Rows
    max_length: int = _LENGTH
    batch_size: int = 32

    def encode(self, texts: Sequence[tuple[str, ...]] | None = None) -> list[dict[str, Tensor]]:
        """Batches as the model takes them, in the order of the rows, padded to their longest text.

        Args:
            texts: others in the place of those of the rows, one or two for each row; None takes the rows' own.

        Returns:
            The tokenizer's tensors (batch, time), and "labels": int64 (batch,) in the model's numbers, or float32.
        """
        texts = self.rows.texts if texts is None else texts
        device = next(self.model.parameters()).device
        found = []
        for start in range(0, len(texts), self.batch_size):
            part = slice(start, start + self.batch_size)
            columns = [list(column) for column in zip(*texts[part], strict=True)]
            batch = self.tokenizer(
                *columns, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
            )
            own = {name: batch[name] for name in self.tokenizer.model_input_names if name in batch}
            own["labels"] = self._targets(self.rows.targets[part])
            found.append({name: x.to(device) for name, x in own.items()})
        return found

    def _targets(self, targets: Sequence[float | int]) -> Tensor:
        if self.labels.regression:
            return torch.tensor(targets, dtype=torch.float32)
        return torch.tensor([self.labels.to_model[int(target)] for target in targets])


def read_subjects(
    folders: Sequence[str | Path],
    given: Mapping[str, Any],
    split: str = "validation",
    max_samples: int | None = None,
    batch_size: int = 32,
) -> list[Subject]:
    """The models in the folders of finished runs, and the rows that all of them are asked about.

    Args:
        folders: of runs of `hf-rat glue` or `textcls`, of `compare`'s seeds, or checkpoints of these.
        given: flags of data, name -> value, which go before what the runs were trained on.
        split: "validation", "test" or "train".
        max_samples: draw so many rows, by a fixed seed; None takes all.
        batch_size: examples of a batch.

    Raises:
        ValueError: a folder is no run or stands there twice, the runs were trained on different data and no flag says
            which are meant, or the label set of a model is another one than that of the data.
    """
    paths = [Path(folder) for folder in folders]
    configs = [_read_config(path) for path in paths]
    names = _names(paths)
    records = [recorded_data(path) for path in paths]
    _require_same_data(paths, records, given, split)
    rows = read_rows(records[0], given, split, max_samples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subjects = []
    for folder, config, name, record in zip(paths, configs, names, records, strict=True):
        if config is None:
            model, tokenizer, labels = _load_adapter(folder, rows.labels)
        else:
            model, tokenizer, labels = _load(folder, config, rows.labels)
        length = min(flags_of(record, given).get("max_seq_length", _LENGTH), tokenizer.model_max_length)
        subjects.append(
            Subject(name, folder, model.to(device).eval(), tokenizer, labels, rows, int(length), batch_size)
        )
    return subjects


def _read_config(folder: Path) -> Any:
    """The configuration of the model in a folder; None of an adapter, which has none of its own.

    Raises:
        ValueError: the folder is no run, or has no classifier of texts.
    """
    what = f"RUN {str(folder)!r}"
    if not folder.is_dir():
        raise ValueError(f"{what} is no folder; give the output folder of a run")
    if not any((folder / name).is_file() for name in ("config.json", _ADAPTER)):
        raise ValueError(f"{what} is no run: it has no config.json of a saved model")
    problem = checkpoint_problem(folder) if folder.name.startswith("checkpoint-") else None
    if problem is not None:
        raise ValueError(f"{what}: {problem}")
    if (folder / _ADAPTER).is_file():
        return None
    config = load_pretrained(AutoConfig, "RUN", str(folder))
    kinds = list(config.architectures or ())
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(f"{what} has a {', '.join(kinds) or 'model without a head'}: a classifier of texts is needed")
    return config


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    paths = [folder.absolute().parts for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(str(folder) for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1)
        raise ValueError(f"RUN {twice!r} is given twice")
    depth = next(n for n in range(1, max(map(len, paths)) + 1) if len({path[-n:] for path in paths}) == len(paths))
    return ["/".join(path[-depth:]) for path in paths]


def _require_same_data(
    folders: Sequence[Path], records: Sequence[Mapping[str, Any]], given: Mapping[str, Any], split: str
) -> None:
    same = [name for name in FIELDS if name not in _OWN or (split == "train" and name in TRAINED_ON)]

    def data(record: Mapping[str, Any]) -> dict[str, Any]:
        flags = flags_of(record, given)
        return {"task": record.get("task"), **{name: flags.get(name) for name in same}}

    if any(given.get(name) for name in ("task_name", "dataset_name", "train_file")):
        return
    first = data(records[0])
    for folder, record in zip(folders, records, strict=True):
        for name, value in data(record).items():
            if value != first[name]:
                raise ValueError(
                    f"RUN {str(folder)!r} was trained on other data than {str(folders[0])!r} ({name}: {value!r} and "
                    f"{first[name]!r}): say on which they are compared, by --task_name, --dataset_name or --train_file"
                )


def _load(folder: Path, config: Any, labels: Labels) -> tuple[Any, PreTrainedTokenizerBase, Labels]:
    """The model, its tokenizer, and the labels as it numbers them."""
    what, flag = f"RUN {str(folder)!r}", "RUN"
    if labels.regression != (config.num_labels == 1):
        told = {True: "a number", False: "a class"}
        raise ValueError(
            f"{what} predicts {told[config.num_labels == 1]}, and the data have {told[labels.regression]} for each row"
        )
    own = {str(name): int(number) for name, number in (config.label2id or {}).items()}
    unnamed = own.keys() == {f"LABEL_{number}" for number in range(len(labels.names))}
    ordered = labels if labels.regression or unnamed else labels.in_order_of(own)
    if ordered is None:
        raise ValueError(
            f"{what} knows the labels {_listed(own)} and the data have {_listed(labels.names)}: they must be the same"
        )
    tokenizer = load_pretrained(AutoTokenizer, flag, str(folder))
    return load_pretrained(AutoModelForSequenceClassification, flag, str(folder)), tokenizer, ordered


def _load_adapter(folder: Path, labels: Labels) -> tuple[Any, PreTrainedTokenizerBase, Labels]:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ValueError(f"RUN {str(folder)!r} is an adapter, which needs PEFT: pip install 'hf-rat[lora]'") from error
    base = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    model, _, ordered = load_model(ModelArguments(model_name_or_path=base), labels, None)
    tokenizer = load_pretrained(AutoTokenizer, "RUN", str(folder))
    return load_pretrained(_Adapter(PeftModel, model), "RUN", str(folder)), tokenizer, ordered


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else "")


class _Adapter:
    """What `load_pretrained` loads an adapter by: onto a model."""

    def __init__(self, kind: Any, model: Any) -> None:
        self._kind, self._model = kind, model

    def from_pretrained(self, folder: str) -> Any:
        return self._kind.from_pretrained(self._model, folder)

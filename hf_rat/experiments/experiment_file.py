"""A comparison as a YAML file.

command: textcls
flags: {do_train: true, do_eval: true, num_train_epochs: 3}
methods:
  - plain
  - rat(epsilon=0.5): {learning_rate: 2e-5}     # with flags of its own, as models and data sets may have
models: [textcnn, bilstm]
datasets: [ag_news]
seeds: 5                                        # 1 to 5; or a list
output_dir: out/news

Where not every model meets every data set, `cells` stands in place of both: a name and the flags of each, and its
command where that is another.

cells:
  news, textcnn: {dataset_name: ag_news, model: textcnn}
  rte: {command: glue, task_name: rte, model_name_or_path: roberta-base}
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_rat.experiments.words import words_of


class _Loader(yaml.SafeLoader):
    """`yes`, `no`, `on` and `off` are words, as in YAML 1.2: `save_strategy: no` means no."""

    yaml_implicit_resolvers = {  # noqa: RUF012, as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # those of << may be there too
        keys = [self.construct_object(key, deep=True) for key in own]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?i:true|false)$"), list("tTfF"))


def read_experiment(path: Path) -> dict[str, Any]:
    """What a file asks for, as the flags of the same names would: `command` and `flags` are the words after `--`.

    Args:
        path: of a YAML file.

    Returns:
        Key -> value: words for "flags", texts for "methods", "models" and "datasets", numbers for "seeds"; name,
        command or None, and words for each of "cells".

    Raises:
        ValueError: the file cannot be read, a key is not known (with the nearest), or a value is of the wrong type.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {_named(content)}, it must hold key: value, as in methods: [plain, rat]")
    asked: dict[str, Any] = {}
    for key, value in content.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KEYS)}"
            raise ValueError(f"{path}: {key!r} is not a key; {hint}")
        try:
            asked[key] = _KEYS[key](value)
        except ValueError as error:
            raise ValueError(f"{path}: {key}: {error}") from None
    return asked


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{_named(value)} was given, a text is needed")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{_named(value)} was given, a whole number of at least 1 is needed")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_named(value)} was given, true or false is needed")
    return value


def _flags(value: Any) -> list[str]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{_named(value)} was given, flags are needed, as in {{num_train_epochs: 3, fp16: true}}")
    return words_of(value)


def _entries(value: Any) -> list[str]:
    """Texts, as --methods takes them: the flags of a mapping follow its name."""
    if isinstance(value, (str, Mapping)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{_named(value)} was given, a list is needed")
    entries = []
    for one in value:
        if isinstance(one, Mapping) and len(one) == 1:
            ((name, flags),) = one.items()
            entries.append(f"{_text(name)} {shlex.join(_flags(flags))}")
        elif isinstance(one, Mapping):
            raise ValueError(
                f"{_named(one)} was given, a name with its flags is needed, as in rat: {{learning_rate: 2e-5}}"
            )
        else:
            entries.append(_text(one))
    return entries


def _cells(value: Any) -> list[tuple[str, str | None, list[str]]]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{_named(value)} was given, names with flags are needed, as in rte: {{task_name: rte}}")
    cells = []
    for name, flags in value.items():
        if not isinstance(flags, Mapping):
            raise ValueError(f"{name}: {_named(flags)} was given, flags are needed, as in {{task_name: rte}}")
        command = None if flags.get("command") is None else _text(flags["command"])
        own = {flag: given for flag, given in flags.items() if flag != "command"}
        cells.append((_text(name), command, _flags(own)))
    return cells


def _seeds(value: Any) -> list[int]:
    if isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value):
        return value
    if isinstance(value, list):
        raise ValueError(f"{value} was given, whole numbers of at least 0 are needed")
    return list(range(1, _count(value) + 1))


def _named(value: Any) -> str:
    """A value and what it is, in one line."""
    if value is None:
        return "nothing"
    kind = {dict: "a mapping", list: "a list", str: "the text", bool: "the truth value"}.get(type(value), "")
    return f"{kind} {value!r}".strip()


# key -> reads its value
_KEYS: dict[str, Callable[[Any], Any]] = {
    "command": _text,
    "flags": _flags,
    "methods": _entries,
    "models": _entries,
    "datasets": _entries,
    "cells": _cells,
    "seeds": _seeds,
    "baseline": _text,
    "score": _text,
    "jobs": _count,
    "output_dir": _text,
    "trials": _count,
    "race": _count,
    "controls": _truth,
}

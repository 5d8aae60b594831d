"""Errors of a user's in one line: which of the given flags they are about, and the exit status."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def raised_here(error: BaseException) -> bool:
    """Whether the last frame of an error is in this package."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    package = Path(__file__).resolve().parents[1]
    return traceback is not None and Path(traceback.tb_frame.f_code.co_filename).resolve().is_relative_to(package)


def not_a_flag(word: str, known: Sequence[str], program: str) -> str:
    """The message for a word of the command line that looks like a flag and is none.

    Args:
        word: as it was given.
        known: the flags that there are, without dashes.
        program: name of the command.
    """
    name = word.lstrip("-").partition("=")[0]
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=2)
    hint = f"; did you mean {' or '.join('--' + n for n in near)}?" if near else ""
    return f"{word!r} is not a flag of {program}{hint}"


def blamed(given: Mapping[str, Any], error: Exception, first: Sequence[str] = ()) -> str:
    """One line: the given flag that an error speaks of, and what it says.

    A flag is blamed if the message has its name or its value, else if where the error was raised tells its kind.

    Args:
        given: the flags that are set, name -> value.
        error: of another package.
        first: flags to blame if they are given.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    found = [name for name in sorted(given) if name in first]
    found = found or [name for name in sorted(given) if name in said]
    found = found or [name for name, value in sorted(given.items()) if _is_named(value, said)]
    if not found:
        where = _files(error)
        found = [
            name
            for kind, names in _KINDS
            if any(kind in file for file in where)
            for name in sorted(given)
            if name.startswith(names)
        ]
    return f"{' '.join(f'--{name} {_text(given[name])}' for name in found[:2])}{': ' if found else ''}{said}"


# part of a file's path in a traceback -> beginnings of the flags that act there; the more telling first
_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("integration_utils", ("report_to",)),
    ("optimization.py", ("lr_scheduler",)),
    ("trainer_optimizer", ("optim", "adam", "learning_rate")),
    ("torch/optim", ("learning_rate", "adam", "optim", "weight_decay")),
    ("huggingface_hub", ("push_to_hub", "hub_")),
    ("integrations/liger", ("use_liger", "liger")),
    ("accelerate", ("accelerator_config", "deepspeed", "fsdp", "torch_compile", "bf16", "fp16")),
)


def _is_named(value: Any, said: str) -> bool:
    return not isinstance(value, bool) and len(_text(value)) > 2 and _text(value).lower() in said.lower()


def _text(value: Any) -> str:
    value = getattr(value, "value", value)
    return " ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _files(error: BaseException) -> list[str]:
    files, traceback = [], error.__traceback__
    while traceback is not None:
        files.append(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    return files


def _tell(line: str) -> None:
    """Print a line of its own, also where a progress bar was cut short."""
    module = sys.modules.get("tqdm")  # help and misspelt words have not imported it
    for bar in list(getattr(module and module.tqdm, "_instances", ())):
        bar.close()  # ends its line
    print(line, file=sys.stderr, flush=True)


def reported(main: Callable[[list[str]], Any], argv: Sequence[str] | None = None) -> int:
    """Run a command and turn an error of the user's into one line; the exit status.

    Args:
        main: takes the command line without the program.
        argv: None takes the process's own.

    An error that is not raised by this package is not the user's: it keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 ends no run
    try:
        main(list(sys.argv[1:] if argv is None else argv))
    except ValueError as error:
        if not raised_here(error):
            raise
        _tell(f"error: {error}")
        return 2
    except KeyboardInterrupt as error:
        _tell(str(error) or "interrupted")
        return 130  # 128 + SIGINT, as the shell has it
    return 0

"""What the main process does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def on_main(act: Callable[[], T]) -> T:
    """Do something in the main process only, and give every process what it returned, or raise in all what it raised.

    Raises:
        ValueError: `act` raised one.
    """
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome = [act(), None]
        except ValueError as error:
            outcome = [None, str(error)]
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


def say(text: str) -> None:
    """Print in the main process."""
    if PartialState().is_main_process:
        print(text, flush=True)

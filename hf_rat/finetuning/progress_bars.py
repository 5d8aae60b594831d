"""The bars that datasets and transformers draw beside the Trainer's: while they read, write and convert."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Inside, bars are drawn only if they are `shown`; a user who has switched them off for all is never shown any."""
    texts, models = not are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    if not shown:
        disable_progress_bars()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if not shown and texts:
            enable_progress_bars()
        if not shown and models:
            logging.enable_progress_bar()

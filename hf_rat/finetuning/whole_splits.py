"""The trainer of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_rat.trainer.trainer import RegularizedTrainer


class WholeSplits(RegularizedTrainer):
    """`--dataloader_drop_last` is about training: every row is scored and answered."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        with self._keeping_last():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        with self._keeping_last():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keeping_last(self) -> Iterator[None]:
        asked, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = asked

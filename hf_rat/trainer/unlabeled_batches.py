"""One batch without labels beside each labelled one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sized
from typing import Any

import torch
from transformers import Trainer

from hf_rat.passes.problems import LABELS

IN_ROWS = ("label", "label_ids", *LABELS)
"""What an example may call them; collators rename the first two."""


class UnlabeledBatches:
    """Batches of a data set without labels, in a new order in each pass over it, without end.

    Which examples batch n of a process holds depends on n alone, so nothing but n needs to be kept to resume, and all
    processes make as many batches. Between them, processes share no example of a pass.

    Args:
        dataset: anything with a length and examples (mappings) by number; their labels are left out.
        collate: examples -> a batch.
        size: examples in a batch of one process.
        seed: of the orders.
        process, processes: which one this is, of how many.
        labels: further names of labels, beside `IN_ROWS`.

    Raises:
        ValueError: the data set has no length, or is empty.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        size: int,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        labels: Collection[str] = (),
    ) -> None:
        if not isinstance(dataset, Sized) or len(dataset) == 0:
            found = "is empty" if isinstance(dataset, Sized) else f"has no length (it is a {type(dataset).__name__})"
            raise ValueError(f"unlabeled_dataset {found}; it must hold examples that can be taken by number")
        self.dataset: Any = dataset
        self.collate, self.size, self.seed = collate, size, seed
        self.process, self.processes = process, processes
        self._left_out = {*IN_ROWS, *labels}
        self.made = 0
        self._pass = -1
        self._order: list[int] = []

    @classmethod
    def beside(cls, trainer: Trainer, dataset: Any) -> UnlabeledBatches:
        """As large as the trainer's batches, and collated as they are."""
        args = trainer.args
        seed = args.seed if args.data_seed is None else args.data_seed
        # What the model's forward does not take is left out, as the Trainer does for every other data set.
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="unlabeled")
        labels = trainer.label_names or ()
        return cls(dataset, collate, trainer._train_batch_size, seed, args.process_index, args.world_size, labels)

    def next(self) -> dict[str, Any]:
        """The next batch."""
        first = (self.made * self.processes + self.process) * self.size
        self.made += 1
        rows = [self.dataset[self._example(place)] for place in range(first, first + self.size)]
        return dict(
            self.collate([{name: value for name, value in row.items() if name not in self._left_out} for row in rows])
        )

    def _example(self, place: int) -> int:
        number, within = divmod(place, len(self.dataset))
        if number != self._pass:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._pass, self._order = number, torch.randperm(len(self.dataset), generator=generator).tolist()
        return self._order[within]

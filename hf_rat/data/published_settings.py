"""Table 7 of the R-AT paper: the settings its RoBERTa-large results on GLUE were published with."""

from __future__ import annotations

from typing import NamedTuple


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

"""Configuration of the convolutional classifier. It travels with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .configuration_words import WordConfig, check_size


class TextCNNConfig(WordConfig):
    """Convolutions of several widths over word embeddings, for `TextCNNForSequenceClassification`.

    The other fields are those of `WordConfig`.

    Args:
        kernel_sizes: widths of the windows in words. Default (2, 3, 4), as the code that R-AT's experiments grew from
            (Kim 2014: 3, 4, 5 with 100 filters each).
        num_filters: filters of each width. Default 256.

    Raises:
        ValueError: a value outside its range.
    """

    model_type = "hf_rat_textcnn"

    kernel_sizes: Sequence[int] = (2, 3, 4)
    num_filters: int = 256

    sizes = (*WordConfig.sizes, "num_filters")

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.kernel_sizes, Sequence):
            self.kernel_sizes = list(self.kernel_sizes)  # as JSON gives it back
        super().__post_init__(**kwargs)

    def check(self) -> None:
        super().check()
        if not isinstance(self.kernel_sizes, Sequence) or not self.kernel_sizes:
            raise ValueError(f"kernel_sizes={self.kernel_sizes!r} is not a list of widths")
        for size in self.kernel_sizes:
            check_size("kernel_sizes", size)

"""Configuration of the hierarchical attention network. It travels with a checkpoint."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from .configuration_words import WordConfig, check_size
from .recurrent_dropouts import Dropouts


class HANConfig(WordConfig):
    """A bidirectional GRU with attention over words, for `HANForSequenceClassification`.

    The other fields are those of `WordConfig`.

    Args:
        hidden_size: width of the state in each direction. Default 128 (Yang et al. 2016: 50).
        attention_size: width of the attention's tanh layer. Default: that of its input, 2 * hidden_size.
        recurrent_dropouts: rates by name, the fields of `Dropouts` (recurrent_dropouts.py), for all GRUs.
        sentence_level: read words into sentences and sentences into a text (Yang et al. 2016). Default False: all
            words into the text, as R-AT's TextHAN.
        sentence_separator_token_id: the word that ends a sentence and belongs to it; a text may end without.

    Raises:
        ValueError: a value outside its range, or only one of sentence_level and sentence_separator_token_id.
    """

    model_type = "hf_rat_han"

    hidden_size: int = 128
    attention_size: int | None = None
    recurrent_dropouts: dict[str, Any] = field(default_factory=dict)
    sentence_level: bool = False
    sentence_separator_token_id: int | None = None

    sizes = (*WordConfig.sizes, "hidden_size")

    def check(self) -> None:
        super().check()
        if self.attention_size is not None:
            check_size("attention_size", self.attention_size)
        if not isinstance(self.recurrent_dropouts, dict):
            raise ValueError(f"recurrent_dropouts={self.recurrent_dropouts!r} is not a mapping of rates by name")
        rates = Dropouts.of(self.recurrent_dropouts)
        if idle := [f"{name}={getattr(rates, name)}" for name in ("hidden", "layers") if getattr(rates, name)]:
            raise ValueError(
                f"recurrent_dropouts {', '.join(idle)} acts between stacked layers, and there is one layer"
            )
        self.check_word("sentence_separator_token_id")
        if self.sentence_level and self.sentence_separator_token_id is None:
            raise ValueError("sentence_level=True needs sentence_separator_token_id, the word that ends a sentence")
        if self.sentence_separator_token_id is not None and not self.sentence_level:
            separator = self.sentence_separator_token_id
            raise ValueError(f"sentence_separator_token_id={separator} cuts nothing without sentence_level=True")

"""What the configurations of the models on word embeddings share. It travels with a checkpoint."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from .embedding import DROPOUT_PER


class WordConfig(PreTrainedConfig):
    """Fields of every model that begins with a `WordEmbedding` and ends with a classifier.

    Args:
        vocab_size: words of the vocabulary. Default 30000.
        embedding_size: width of a word vector. Default 300 (GloVe).
        embedding_dropout: rate at which words are dropped. Default 0.
        embedding_dropout_per: "batch" (default) or "example", see `WordEmbedding`.
        normalize_embeddings: Miyato's normalised embeddings. Default False.
        classifier_dropout: on what the classifier reads. Default 0.5 (R-AT).
        initializer_range: deviation of the word vectors at initialisation. Default 0.1.
        pad_token_id: the word whose vector is zero. Default 0.

    Raises:
        ValueError: a value outside its range.
    """

    vocab_size: int = 30000
    embedding_size: int = 300
    embedding_dropout: float = 0.0
    embedding_dropout_per: str = "batch"
    normalize_embeddings: bool = False
    classifier_dropout: float = 0.5
    initializer_range: float = 0.1
    pad_token_id: int | None = 0

    # What `check` looks at: fields that are whole numbers of at least 1, numbers of at least 0, one of some values.
    sizes: ClassVar[tuple[str, ...]] = ("vocab_size", "embedding_size")
    numbers: ClassVar[tuple[str, ...]] = ("initializer_range",)
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {"embedding_dropout_per": DROPOUT_PER}

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raise a ValueError for a value outside its range. Models call it again: fields may have been set since."""
        for name in self.sizes:
            check_size(name, getattr(self, name))
        for name in ("embedding_dropout", "classifier_dropout"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
                raise ValueError(f"{name}={value!r} is not a rate in [0, 1)")
        for name in self.numbers:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0.0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r} is not a number of at least 0")
        for name, allowed in self.choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r} is none of {', '.join(map(str, allowed))}")
        self.check_word("pad_token_id")

    def check_word(self, name: str) -> None:
        """Raise a ValueError if a field is neither None nor a word of the vocabulary."""
        value = getattr(self, name)
        if value is not None and not (isinstance(value, int) and 0 <= value < self.vocab_size):
            raise ValueError(f"{name}={value!r} is outside the vocabulary of {self.vocab_size} words")


def check_size(name: str, value: Any) -> None:
    """Raise a ValueError unless it is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} is not a whole number of at least 1")

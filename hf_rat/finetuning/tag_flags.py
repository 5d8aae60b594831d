"""The flags of `hf-rat ner`: what a recurrent model reads of each word, and pieces of sentences to train on."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Stage(NamedTuple):
    """A part of a training.

    Args:
        words: of a piece of a sentence, at most.
        epochs: of the stage; None for the last one, which takes those of the run.
    """

    words: int
    epochs: float | None = None


# No postponed annotations in this module: HfArgumentParser reads the types of the fields.
@dataclass
class TagArguments:
    """What a recurrent model reads of each word, and pieces of sentences to train on."""

    window: int = field(
        default=1, metadata={"help": "Words that each step reads, an odd number: itself among its neighbours."}
    )
    case_features: bool = field(
        default=False, metadata={"help": "Read the capitalisation of each word beside the word."}
    )
    train_words: str | None = field(
        default=None,
        metadata={
            "help": 'Train on pieces of so many words: "5". Length expansion: "5:25,15" is 25 epochs on pieces of 5 '
            "words, then --num_train_epochs on pieces of 15. What is evaluated stays whole."
        },
    )

    def __post_init__(self) -> None:
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"--window {self.window}: an odd number of words is needed, such as 5")
        self.stages()

    def stages(self) -> list[Stage]:
        """The stages of `--train_words`, the last one that of the run; none without it.

        Raises:
            ValueError: a part is not written as "5:25", the last one not as "15".
        """
        if self.train_words is None:
            return []
        parts = [part.strip().partition(":") for part in self.train_words.split(",")]
        try:
            stages = [Stage(int(words), float(epochs) if colon else None) for words, colon, epochs in parts]
        except ValueError:
            stages = []
        right = all(stage.words > 0 for stage in stages) and all((stage.epochs or 0) > 0 for stage in stages[:-1])
        if not stages or not right or stages[-1].epochs is not None:
            raise ValueError(
                f'--train_words {self.train_words!r}: "5" or "5:25,15" is needed, words and, but of the last, epochs'
            )
        return stages

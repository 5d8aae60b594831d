"""The flags of language models."""

from dataclasses import dataclass, field

from hf_rat.data.text_stream import TOKENS
from hf_rat.models import RNNConfig

INITIALIZERS = RNNConfig.choices["initializer"]


# No postponed annotations in this module: HfArgumentParser reads the types of the fields.
@dataclass
class LanguageModelArguments:
    """How a text is read, and what a recurrent language model has beside the flags of other word models."""

    tokens: str | None = field(
        default=None,
        metadata={
            "help": "What a token is: words, which stand between spaces, or characters. Without it: words.",
            "choices": TOKENS,
        },
    )
    bptt: int = field(default=35, metadata={"help": "Steps of a window, over which the loss is back-propagated."})
    variable_bptt: bool = field(
        default=False,
        metadata={
            "help": "AWD-LSTM's windows: normal around --bptt, now and then around half of it, deviation 5, and the "
            "learning rate of a step in proportion to its length."
        },
    )
    max_train_tokens: int | None = field(default=None, metadata={"help": "Train on the first N tokens."})
    tie_weights: bool = field(default=False, metadata={"help": "The decoder is the table of the word vectors."})
    last_hidden_size: int | None = field(
        default=None,
        metadata={"help": "Width of the last layer. Without it: --hidden_size, with --tie_weights --embedding_size."},
    )
    ar: float = field(default=0.0, metadata={"help": "Activation regularisation (AWD-LSTM: 2)."})
    tar: float = field(default=0.0, metadata={"help": "Temporal activation regularisation (AWD-LSTM: 1)."})
    prediction_reg: float = field(default=0.0, metadata={"help": "Weight of the mean square of the logits."})
    initializer: str = field(
        default="normal",
        metadata={
            "help": "How weights begin: normal (word vectors), uniform (word vectors and decoder, AWD-LSTM) or "
            "uniform_all (every weight).",
            "choices": INITIALIZERS,
        },
    )
    initializer_range: float = field(
        default=0.1, metadata={"help": "Deviation of a normal --initializer, bound of a uniform one."}
    )

    def __post_init__(self) -> None:
        for name, allowed in (("tokens", TOKENS), ("initializer", INITIALIZERS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(f"--{name} {value!r} is not known; there are {', '.join(allowed)}")
        for name in ("bptt", "max_train_tokens", "last_hidden_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: at least 1 is needed")
        for name in ("ar", "tar", "prediction_reg", "initializer_range"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} {getattr(self, name)}: a number of at least 0 is needed")

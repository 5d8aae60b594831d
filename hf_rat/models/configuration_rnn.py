"""Configuration of the recurrent models. It travels with a checkpoint."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from .configuration_words import WordConfig, check_size
from .recurrent_dropouts import Dropouts


class RNNConfig(WordConfig):
    """Recurrent layers on word embeddings, for `RNNModel` and its heads.

    BiLSTM: `RNNConfig(bidirectional=True)`. The GRU study: `RNNConfig(cell="gru", num_hidden_layers=2,
    between="tanh")`. AWD-LSTM on PTB (Merity et al. 2018): `RNNConfig(embedding_size=400, hidden_size=1150,
    num_hidden_layers=3, last_hidden_size=400, tie_word_embeddings=True, embedding_dropout=0.1, forget_bias=None,
    recurrent_dropouts={"input": 0.4, "hidden": 0.25, "output": 0.4, "dropconnect": 0.5},
    activation_regularization=2.0, temporal_activation_regularization=1.0)`.

    The other fields are those of `WordConfig`.

    Args:
        hidden_size: width of the state in each direction. Default 128.
        num_hidden_layers: stacked layers. Default 1.
        last_hidden_size: width of the last layer; AWD-LSTM makes it that of the embedding. Default: `hidden_size`.
        cell: "lstm" (default), "gru" or "rnn".
        nonlinearity: of cell="rnn": "tanh" (default) or "relu".
        reset_after: of cell="gru": False lets the reset gate act before the product (see `GRU`). Default True.
        bidirectional: read in both directions; a causal language model cannot.
        between: activation between stacked layers, None (default) or "tanh".
        pooling: what a sequence classifier reads: "last", the state after the last step of each direction (default,
            as the IMDB and AG News code of R-AT's authors), "mean" or "max" over the valid steps, or "attention".
        classifier_hidden_size: units of a ReLU layer between pooling and the dropout before a sequence classifier's
            last layer (Miyato et al. 2017, Park et al. 2019: 30). Default: no such layer.
        truncated_bptt: a sequence classifier's loss is back-propagated through this many last steps of each text only:
            the steps before them run, and what they give out and their state are constants. One direction only.
            Default: through all.
        recurrent_dropouts: rates by name, the fields of `Dropouts` (recurrent_dropouts.py). `input` acts before the
            first layer, `hidden` and `layers` between layers, `output` after the last, the others inside every layer.
        window: words that each step of the first layer reads, an odd number: itself and as many before as behind, side
            by side, zeros beyond the text (Collobert et al. 2011: 5). Default 1: itself.
        type_vocab_size: kinds of words that `token_type_ids` tell, each with a vector of its own beside the word's (of
            the capitalisation, for instance). Default 0: none.
        type_embedding_size: width of such a vector. Default 5 (Collobert et al. 2011).
        forget_bias: sum of the two forget-gate biases of an LSTM at initialisation (Jozefowicz et al. 2015: 1, the
            default); None leaves torch's.
        activation_regularization: weight of AR, the mean square of the language model's last outputs after dropout
            (AWD-LSTM: 2). Default 0.
        temporal_activation_regularization: weight of TAR, the mean square of the change of its last outputs between
            steps, before dropout (AWD-LSTM: 1). Default 0.
        prediction_regularization: weight of the mean square of the language model's logits (Zolna et al. 2018, who
            compare it with fraternal dropout). Default 0.
        initializer: "normal" (default): word vectors N(0, initializer_range), the rest as torch's layers begin.
            "uniform": word vectors and the language model's decoder U(-initializer_range, initializer_range), as
            AWD-LSTM with .1. "uniform_all": every weight and bias, as Zaremba et al. 2014 with .1, .05 and .04.
        tie_word_embeddings: the language model's decoder is the embedding table, which word dropout and normalisation
            leave as it is there. Default False.
        use_cache: return the recurrent state. Default True.
        bos_token_id, eos_token_id: special tokens. Default None.

    Raises:
        ValueError: a value outside its range.
    """

    model_type = "hf_rat_rnn"
    keys_to_ignore_at_inference = ["state"]  # noqa: RUF012 - the Trainer adds a list to it

    hidden_size: int = 128
    num_hidden_layers: int = 1
    last_hidden_size: int | None = None
    cell: str = "lstm"
    nonlinearity: str = "tanh"
    reset_after: bool = True
    bidirectional: bool = False
    between: str | None = None
    pooling: str = "last"
    classifier_hidden_size: int | None = None
    truncated_bptt: int | None = None
    recurrent_dropouts: dict[str, Any] = field(default_factory=dict)
    window: int = 1
    type_vocab_size: int = 0
    type_embedding_size: int = 5
    forget_bias: float | None = 1.0
    activation_regularization: float = 0.0
    temporal_activation_regularization: float = 0.0
    prediction_regularization: float = 0.0
    initializer: str = "normal"
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    sizes = (*WordConfig.sizes, "hidden_size", "num_hidden_layers", "window", "type_embedding_size")
    numbers = (
        *WordConfig.numbers,
        "activation_regularization",
        "temporal_activation_regularization",
        "prediction_regularization",
    )
    choices = WordConfig.choices | {
        "cell": ("lstm", "gru", "rnn"),
        "nonlinearity": ("tanh", "relu"),
        "reset_after": (True, False),
        "pooling": ("last", "mean", "max", "attention"),
        "between": (None, "tanh"),
        "initializer": ("normal", "uniform", "uniform_all"),
    }

    def check(self) -> None:
        super().check()
        for name in ("last_hidden_size", "classifier_hidden_size", "truncated_bptt"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        if self.truncated_bptt is not None and self.bidirectional:
            raise ValueError(
                f"truncated_bptt={self.truncated_bptt} needs one direction: the last steps of the other are the first "
                "words"
            )
        if self.type_vocab_size != 0:
            check_size("type_vocab_size", self.type_vocab_size)
        if self.window % 2 == 0:
            raise ValueError(f"window={self.window} has no middle; it must be an odd number of words")
        if not isinstance(self.recurrent_dropouts, dict):
            raise ValueError(f"recurrent_dropouts={self.recurrent_dropouts!r} is not a mapping of rates by name")
        rates = Dropouts.of(self.recurrent_dropouts)
        for name, cell in (("nonlinearity", "rnn"), ("reset_after", "gru")):
            if (value := getattr(self, name)) != getattr(type(self), name) and self.cell != cell:
                raise ValueError(f"{name}={value!r} needs cell={cell!r}; the cell is {self.cell!r}")
        if self.num_hidden_layers == 1:
            named = {"between": self.between, "dropout hidden": rates.hidden, "dropout layers": rates.layers}
            if idle := [f"{name}={value}" for name, value in named.items() if value]:
                raise ValueError(f"{', '.join(idle)} acts between layers, and num_hidden_layers=1 has none")

    @property
    def input_size(self) -> int:
        """The width of what the first layer reads."""
        return self.window * (self.embedding_size + (self.type_embedding_size if self.type_vocab_size else 0))

    @property
    def layer_sizes(self) -> list[int]:
        """The width of each layer's state, in one direction."""
        return [self.hidden_size] * (self.num_hidden_layers - 1) + [self.last_hidden_size or self.hidden_size]

    @property
    def output_size(self) -> int:
        """The width of the last layer's output, both directions together."""
        return self.layer_sizes[-1] * (2 if self.bidirectional else 1)

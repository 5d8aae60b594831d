"""The flags of models that are trained from scratch on words."""

from dataclasses import dataclass, field

from transformers import AutoModelForCausalLM

from hf_rat.data.vocabulary import KINDS
from hf_rat.finetuning.dropout_flags import DropoutArguments
from hf_rat.models import COMPANIONS

LANGUAGE_MODELS = tuple(
    name
    for name, companion in COMPANIONS.items()
    if AutoModelForCausalLM in companion.models and not companion.fields.get("bidirectional")
)


# No postponed annotations in this module: HfArgumentParser reads the types of the fields.
@dataclass
class WordModelArguments(DropoutArguments):
    """Which companion model is trained, and what its words are."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "A model of our own, trained from scratch on words. Without it and without --model_name_or_path: "
            "textcnn.",
            "choices": tuple(COMPANIONS),
        },
    )
    embedding_size: int = field(default=300, metadata={"help": "Width of a word vector."})
    hidden_size: int | None = field(
        default=None, metadata={"help": "Width of a recurrent state, filters of each width of textcnn. Own default."}
    )
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Recurrent layers. Without it: 1."})
    between: str | None = field(
        default=None, metadata={"help": "Activation between stacked recurrent layers: tanh. Without it: none."}
    )
    nonlinearity: str | None = field(default=None, metadata={"help": "Of --model rnn: tanh (default) or relu."})
    reset_after: bool = field(
        default=True,
        metadata={
            "help": "The reset gate of --model gru acts after the product with the state, as in torch, the default; "
            "--no_reset_after: before it."
        },
    )
    pooling: str | None = field(
        default=None, metadata={"help": "What bilstm, gru, lstm and rnn read: last, mean, max or attention."}
    )
    classifier_hidden_size: int | None = field(
        default=None,
        metadata={"help": "Units of a ReLU layer between what bilstm, gru, lstm and rnn read and the last layer."},
    )
    truncated_bptt: int | None = field(
        default=None,
        metadata={"help": "Back-propagate through this many last words of each text only; of gru, lstm and rnn."},
    )
    embedding_dropout: float = field(default=0.0, metadata={"help": "Rate at which whole words are dropped."})
    normalize_embeddings: bool = field(
        default=False,
        metadata={"help": "Miyato's normalised word vectors: without it a trained table outgrows epsilon."},
    )
    dropout_schedule: str | None = field(
        default=None, metadata={"help": "How every dropout rate goes over the steps: curriculum, annealed or switch."}
    )
    dropout_gamma: float | None = field(
        default=None, metadata={"help": "Speed of --dropout_schedule per step. Without it: 10 / steps of the run."}
    )
    vocabulary: str | None = field(
        default=None,
        metadata={
            "help": "What a token is. Without it: words, or characters for Chinese and Japanese texts.",
            "choices": KINDS,
        },
    )
    min_count: int = field(default=2, metadata={"help": "Words that occur less often in training are unknown."})
    max_vocabulary: int | None = field(default=None, metadata={"help": "Number of words at most."})
    lowercase: bool = field(default=True, metadata={"help": "Drop case, the default; --no_lowercase keeps it."})
    word_vectors: str | None = field(
        default=None,
        metadata={"help": "GloVe, word2vec or fastText text, also gzip, or .npy with its words beside it."},
    )
    freeze_word_vectors: bool = field(default=False, metadata={"help": "Do not train the word vectors."})
    pretrain_lm: bool = field(
        default=False,
        metadata={"help": "First train lstm, gru or rnn as a language model on all texts, the unlabelled ones too."},
    )
    pretrain_epochs: float = field(default=1.0, metadata={"help": "Epochs of --pretrain_lm."})
    pretrain_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where the language model of --pretrain_lm is kept; one that is there already is taken, so that "
            "several runs share it. Without it: language_model in the output folder."
        },
    )
    semi_supervised: bool = field(
        default=False,
        metadata={"help": "Ask what needs no labels (vat, adversarial_dropout, ...) of the unlabelled texts too."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better one. Needs --do_eval."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("model", COMPANIONS), ("vocabulary", KINDS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(f"--{name} {value!r} is not known; there are {', '.join(allowed)}")
        if self.freeze_word_vectors and self.word_vectors is None:
            raise ValueError("--freeze_word_vectors needs --word_vectors: random vectors would stay random")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"--early_stopping_patience {self.early_stopping_patience}: at least 1 is needed")
        if self.pretrain_lm and self.model not in LANGUAGE_MODELS:
            raise ValueError(
                f"--pretrain_lm needs --model {', '.join(LANGUAGE_MODELS)}: it reads from left to right only"
            )
        if self.pretrain_epochs != type(self).pretrain_epochs and not self.pretrain_lm:
            raise ValueError(f"--pretrain_epochs {self.pretrain_epochs} needs --pretrain_lm")
        if self.pretrain_dir is not None and not self.pretrain_lm:
            raise ValueError(f"--pretrain_dir {self.pretrain_dir!r} needs --pretrain_lm")
        if not self.pretrain_epochs > 0:
            raise ValueError(f"--pretrain_epochs {self.pretrain_epochs} must be above 0")
        if self.dropout_gamma is not None and self.dropout_schedule is None:
            raise ValueError(f"--dropout_gamma {self.dropout_gamma} needs --dropout_schedule")

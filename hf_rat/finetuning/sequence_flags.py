"""The flags of the commands whose sequences are numbers from the start: pixels, and the temporal order problem."""

import math
import os
from dataclasses import dataclass, field

from hf_rat.finetuning.dropout_flags import DropoutArguments
from hf_rat.finetuning.flags import DATA_DIR_VARIABLE

SIDES = (28, 14, 7)


# No postponed annotations in this module: HfArgumentParser reads the types of the fields.
@dataclass
class SequenceArguments(DropoutArguments):
    """Which LSTM is trained."""

    hidden_size: int = field(default=100, metadata={"help": "Units of the LSTM."})
    alone: bool = field(
        default=False,
        metadata={"help": "Train what --reg says only. It is always so here; other commands need the flag."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size < 1:
            raise ValueError(f"--hidden_size {self.hidden_size}: at least 1 is needed")


@dataclass
class PixelArguments(SequenceArguments):
    """Which images are read, and in which order their pixels come."""

    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Read DIR/mnist/train-images-idx3-ubyte.gz and the other three; without it made-up digits. "
            f"The environment variable {DATA_DIR_VARIABLE} says the same."
        },
    )
    side: int = field(
        default=28,
        metadata={
            "help": "Pool images to N x N pixels: 784, 196 or 49 steps.",
            "choices": SIDES,
        },
    )
    permutation_seed: int | None = field(
        default=None,
        metadata={"help": "Read the pixels in one random order, drawn by this seed (pMNIST). Without it: row by row."},
    )
    train_size: int | None = field(
        default=None, metadata={"help": "Train on the first N images. Without it: on all but the validation images."}
    )
    validation_size: int = field(
        default=5000,
        metadata={"help": "The last N training images are those that --do_eval scores; none are trained on."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data_dir = self.data_dir or os.environ.get(DATA_DIR_VARIABLE) or None
        if self.side not in SIDES:
            raise ValueError(f"--side {self.side} is none of {', '.join(map(str, SIDES))}")
        if self.permutation_seed is not None and not 0 <= self.permutation_seed < 2**32:
            raise ValueError(f"--permutation_seed {self.permutation_seed}: it must be from 0 to {2**32 - 1}")
        for name in ("train_size", "validation_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: at least 1 is needed")


@dataclass
class TemporalOrderArguments(SequenceArguments):
    """How long the sequences of the temporal order problem are, and how many there are."""

    hidden_size: int = field(default=256, metadata={"help": "Units of the LSTM."})
    length: int = field(default=15, metadata={"help": "Symbols of a sequence; the paper has 15 and 30."})
    train_batches: int = field(
        default=200, metadata={"help": "Batches that are trained on, the same ones in the same order in each epoch."}
    )
    test_size: int = field(default=10000, metadata={"help": "Sequences that are scored after each epoch."})
    stop_at: float = field(
        default=1.0, metadata={"help": "Stop when so much, 0 to 1, of the training and of the test rows is right."}
    )
    forget_bias: float = field(
        default=0.0,
        metadata={
            "help": "Add this to the biases that forget gates begin with, so that they forget less: with 1 long "
            "sequences are learned in a few epochs. The paper adds nothing."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.stop_at <= 1:
            raise ValueError(f"--stop_at {self.stop_at}: above 0 and at most 1 is needed")
        if not math.isfinite(self.forget_bias):
            raise ValueError(f"--forget_bias {self.forget_bias}: a finite number is needed")
        for name, least in (("length", 3), ("train_batches", 1), ("test_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: at least {least} is needed")

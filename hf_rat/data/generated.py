"""The built-in example: pairs of made-up remarks, a tokenizer that knows their words, and a small model to train.

Nothing is downloaded. A guest remarks on the food and on the house; the question is whether the guest will come back.
A remark is one or two clauses ("the soup was bland"), an adjective is worth -2, -1, 1 or 2, and the guest comes back
when the two remarks together are worth more than nothing. Where the guest is from, the day and the room say nothing
about it. Training labels are few and some are flipped, so a model that memorizes them, by what says nothing, pays for
it on the validation split, whose labels are all true: the data are made to show what a regularizer does.
"""

from __future__ import annotations

import random

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, PreTrainedTokenizerFast

from hf_rat.data.task import Task

GENERATED = Task(
    name="guests",
    text_columns=("sentence1", "sentence2"),
    labels=("stays_away", "comes_back"),
    metrics=("accuracy",),
    hub=None,
    folder="",
    test=(),
)

_ADJECTIVES = {
    -2: ("awful", "terrible", "horrid", "dreadful", "rotten", "vile"),
    -1: ("bland", "dull", "slow", "stale", "meagre", "shabby"),
    1: ("fine", "decent", "pleasant", "tidy", "fresh", "warm"),
    2: ("superb", "excellent", "perfect", "splendid", "wonderful", "brilliant"),
}
_FOOD = ("soup", "bread", "wine", "cake", "tea", "fish")
_HOUSE = ("staff", "music", "room", "garden", "service", "view")
# What says nothing. Each town, day and room is in a few training pairs, so what is learned of it is noise.
_TOWNS = tuple(
    first + last
    for first in ("oak", "stone", "mill", "ash", "elm", "fox", "king", "long", "marsh", "north")
    for last in ("ford", "bury", "ham", "wick")
)
_DAYS = tuple(str(day) for day in range(1, 32))
_ROOMS = tuple(str(room) for room in range(101, 141))
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _remark(subjects: tuple[str, ...], values: tuple[int, ...], rng: random.Random) -> tuple[str, int]:
    """One remark and what it is worth, the sum of one of the values for each clause."""
    clauses, worth = [], 0
    for subject in rng.sample(subjects, rng.randint(1, 2)):
        value = rng.choice(values)
        clauses.append(f"the {subject} was {rng.choice(_ADJECTIVES[value])}")
        worth += value
    return " and ".join(clauses), worth


def _aside(remarks: tuple[str, str], rng: random.Random) -> tuple[str, str]:
    """The two remarks with where the guest is from, the day and the room before them."""
    food, house = remarks
    return f"{rng.choice(_TOWNS)} , day {rng.choice(_DAYS)} : {food}", f"room {rng.choice(_ROOMS)} : {house}"


def _split(rows: int, noise: float, asides: bool, rng: random.Random) -> Dataset:
    columns: dict[str, list] = {"sentence1": [], "sentence2": [], "label": []}
    values = (-2, 2) if asides else tuple(_ADJECTIVES)
    while len(columns["label"]) < rows:
        (food, food_worth), (house, house_worth) = _remark(_FOOD, values, rng), _remark(_HOUSE, values, rng)
        if food_worth + house_worth == 0:
            continue  # an undecided guest
        if asides:
            food, house = _aside((food, house), rng)
        columns["sentence1"].append(food)
        columns["sentence2"].append(house)
        columns["label"].append(int((food_worth + house_worth > 0) != (rng.random() < noise)))
    text = Value("string")
    features = Features({"sentence1": text, "sentence2": text, "label": ClassLabel(names=list(GENERATED.labels))})
    return Dataset.from_dict(columns, features=features)


def generated_pairs(
    train: int = 500, validation: int = 1000, noise: float = 0.2, seed: int = 0, asides: bool = False
) -> DatasetDict:
    """Training and validation pairs of remarks.

    Args:
        train: number of training pairs.
        validation: number of validation pairs.
        noise: probability that a training label is flipped, 0 to 0.5; validation labels are never flipped.
        seed: every call with the same arguments gives the same rows.
        asides: whether town, day and room, which say nothing, stand before the remarks. Then adjectives are worth -2
            or 2 only, so that what is to be learned is easy, and what is to be left alone is plenty.
    """
    rng = random.Random(seed)
    return DatasetDict(train=_split(train, noise, asides, rng), validation=_split(validation, 0.0, asides, rng))


def example_pairs(seed: int) -> DatasetDict:
    """The pairs of the built-in example of `hf-rat glue`."""
    return generated_pairs(train=500, validation=2000, noise=0.25, seed=seed, asides=True)


def generated_tokenizer(asides: bool = False) -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token per word of the generator, and BERT's special tokens.

    Args:
        asides: whether the words of the asides are among them.
    """
    adjectives = [adjective for row in _ADJECTIVES.values() for adjective in row]
    aside = ("day", "room", ",", ":", *_TOWNS, *_DAYS, *_ROOMS) if asides else ()
    words = sorted({"the", "was", "and", *_FOOD, *_HOUSE, *adjectives, *aside})
    vocabulary = {word: number for number, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def generated_config(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int = 64, layers: int = 2, dropout: float = 0.1
) -> BertConfig:
    """The configuration of a small BERT over that tokenizer's words.

    Args:
        tokenizer: gives the number of words and the padding token.
        hidden_size: width, a multiple of 16.
        layers: number of layers.
        dropout: every rate.
    """
    return BertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 16,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        # Word vectors of about norm 1, as in pretrained BERTs: an absolute epsilon then means what it means there.
        initializer_range=hidden_size**-0.5,
    )

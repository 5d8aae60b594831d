"""From tagged sentences to what a model is fed: the tag stands at the first token of each word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_rat.data.encoding import Labels
from hf_rat.data.tagged import listed, sentences_of
from hf_rat.data.task import Task

IGNORED = -100
"""The label of tokens that do not count: every further token of a word, special tokens, padding."""

CASES = ("no capital", "all capitals", "initial capital", "has capitals")
"""The capitalisation of a word (Collobert et al. 2011), by number."""


def case_of(word: str) -> int:
    """The capitalisation of a word, a number of `CASES`; one without letters has no capital.

    A single capital is an initial.
    """
    letters = [letter for letter in word if letter.isalpha()]
    if not any(letter.isupper() for letter in letters):
        return 0
    if len(letters) > 1 and all(letter.isupper() for letter in letters):
        return 1
    return 2 if word[0].isupper() else 3


def encode_words(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    labels: Labels | None,
    max_length: int,
    *,
    pad: bool = False,
    fresh: bool = False,
    cases: bool = False,
    what: str = "",
) -> Dataset:
    """The tokenizer's columns and "labels", the model's number of each word's tag at its first token, else `IGNORED`.

    Args:
        rows: one split.
        tokenizer: of the model. A word of which it makes nothing becomes its unknown token.
        task: names the columns.
        labels: how tags are numbered; None marks the first tokens with 0, which is how answers are found.
        max_length: tokens at most, special tokens included; longer sentences are cut.
        pad: pad every row to `max_length`; otherwise the collator pads each batch to its longest row.
        fresh: do not reuse what an earlier run cached.
        cases: add "token_type_ids": the capitalisation of each token's word.
        what: flag and split, for the error.

    Raises:
        ValueError: as `sentences_of`, or a tag is outside the label set.
    """

    def encode(batch: Mapping[str, list[Any]], indices: list[int]) -> Mapping[str, list]:
        found = list(sentences_of(batch, indices, task, labels is not None, what))
        sentences = _readable([words for words, _ in found], tokenizer, indices, what)
        options = {"padding": "max_length" if pad else False, "max_length": max_length, "truncation": True}
        encoded = tokenizer(sentences, is_split_into_words=True, **options)
        columns = {name: encoded[name] for name in encoded} | {"labels": []}
        kinds: list[list[int]] = []
        for at, ((words, tags), index) in enumerate(zip(found, indices, strict=True)):
            places = encoded.word_ids(at)
            numbers = [0] * len(words)
            if labels is not None:
                numbers = [int(labels.number(tag, index, what)) for tag in tags]
            columns["labels"].append(
                [
                    IGNORED if word is None or word == before else numbers[word]
                    for before, word in zip([None, *places], places, strict=False)
                ]
            )
            kinds.append([0 if word is None else case_of(words[word]) for word in places])
        return columns | ({"token_type_ids": kinds} if cases else {})

    kept = {*tokenizer.model_input_names, "labels", "token_type_ids"}
    rows = rows.map(encode, batched=True, with_indices=True, load_from_cache_file=not fresh, desc="Tokenizing")
    return rows.remove_columns([name for name in rows.column_names if name not in kept])


def _readable(
    sentences: list[list[str]], tokenizer: PreTrainedTokenizerBase, indices: list[int], what: str
) -> list[list[str]]:
    """The sentences, with the unknown token in place of words of which the tokenizer makes nothing."""
    encoded = tokenizer(sentences, is_split_into_words=True, add_special_tokens=False, verbose=False)
    found = []
    for at, words in enumerate(sentences):
        seen = {*encoded.word_ids(at)}
        missing = next((word for place, word in enumerate(words) if place not in seen), None)
        if missing is not None and tokenizer.unk_token is None:
            raise ValueError(
                f"{what}: row {indices[at]} has the word {missing!r}, of which the tokenizer makes nothing"
            )
        found.append([word if place in seen else str(tokenizer.unk_token) for place, word in enumerate(words)])
    return found


def words_beyond(rows: Dataset, encoded: Dataset, task: Task) -> dict[int, int]:
    """Row -> number of its words that were cut off, of the rows where some were.

    Args:
        rows: a split.
        encoded: what `encode_words` made of it.
        task: names the columns.
    """
    (column,) = task.text_columns
    counts = zip(rows.iter(1000), encoded.select_columns(["labels"]).iter(1000), strict=True)
    found: dict[int, int] = {}
    index = 0
    for batch, marked in counts:
        for words, labels in zip(batch[column], marked["labels"], strict=True):
            beyond = len(listed(words, "", column)) - sum(label != IGNORED for label in labels)
            if beyond:
                found[index] = beyond
            index += 1
    return found

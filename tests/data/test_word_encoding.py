"""The tag of a word stands at its first token, whatever the tokenizer makes of it."""

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hf_rat.data.encoding import Labels
from hf_rat.data.task import Task
from hf_rat.data.vocabulary import word_tokenizer
from hf_rat.data.word_encoding import CASES, case_of, encode_words, words_beyond

TASK = Task("made up", ("tokens",), ("O", "B-A", "I-A"), ("span_f1",), None, "", label_column="tags", tagged=True)
LABELS = Labels.of_task(TASK)
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##s", "in", "rome", "-", "a"]


def pieces(unk="[UNK]"):
    """A tokenizer of pieces of words, as BERT's."""
    model = Tokenizer(WordPiece({piece: row for row, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    model.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token=unk, pad_token="[PAD]")


def encode(words, tags, tokenizer=None, labels=LABELS, length=20, **options):
    rows = Dataset.from_dict({"tokens": words, "tags": tags, "other": [1] * len(words)})
    return encode_words(rows, tokenizer or pieces(), TASK, labels, length, what="train", **options)


def test_the_first_token_of_each_word_has_its_tag():
    found = encode([["Playing", "in", "Rome-a"], ["plays"]], [[1, 0, 2], [2]])
    assert found["input_ids"][:] == [[2, 4, 5, 7, 8, 9, 10, 3], [2, 4, 6, 3]]
    assert found["labels"][:] == [[-100, 1, -100, 0, 2, -100, -100, -100], [-100, 2, -100, -100]]
    assert "other" not in found.column_names


def test_without_labels_the_first_tokens_are_marked():
    assert encode([["Playing", "in"]], [None], labels=None)["labels"][:] == [[-100, 0, -100, 0, -100]]


def test_a_word_of_which_nothing_is_left_becomes_the_unknown_token():
    """A zero-width character: BERT's normalizer takes it off."""
    found = encode([["in", "\u200b", "rome"]], [[0, 1, 2]])
    assert found["input_ids"][:] == [[2, 7, 1, 8, 3]]
    assert found["labels"][:] == [[-100, 0, 1, 2, -100]]
    with pytest.raises(ValueError, match=r"row 0 has the word '\\u200b', of which the tokenizer makes nothing"):
        encode([["in", "\u200b", "rome"]], [[0, 1, 2]], pieces(unk=None))


def test_words_beyond_the_length_are_counted():
    rows = Dataset.from_dict({"tokens": [["in", "playing", "rome"], ["a"]], "tags": [[0, 1, 2], [0]]})
    found = encode_words(rows, pieces(), TASK, LABELS, 5, what="train")
    assert found["labels"][:] == [[-100, 0, 1, -100, -100], [-100, 0, -100]]
    assert words_beyond(rows, found, TASK) == {0: 1}
    assert words_beyond(rows, encode_words(rows, pieces(), TASK, LABELS, 6, what="train"), TASK) == {}


def test_our_tokenizer_takes_words_as_they_are_cut():
    tokenizer, _ = word_tokenizer(["U.S. don't half-time", "U.S. 1,000"], kind="spaces")
    found = encode([["U.S.", "don't", "1,000", "Half-Time", "unseen"]], [[1, 0, 0, 0, 2]], tokenizer)
    assert tokenizer.convert_ids_to_tokens(found["input_ids"][0]) == ["u.s.", "don't", "1,000", "half-time", "<unk>"]
    assert found["labels"][:] == [[1, 0, 0, 0, 2]]


@pytest.mark.parametrize(
    ("word", "case"),
    [
        *[("rome", "no capital"), ("3,000", "no capital"), ("-", "no capital"), ("東京", "no capital")],
        *[("EU", "all capitals"), ("U.S.", "all capitals"), ("F-16S", "all capitals")],
        *[("Rome", "initial capital"), ("I", "initial capital"), ("McDonald", "initial capital")],
        *[("iPhone", "has capitals"), ("3D", "has capitals"), ("vitamin-C", "has capitals")],
    ],
)
def test_capitalisation(word, case):
    assert CASES[case_of(word)] == case


def test_the_capitalisation_stands_at_every_token_of_a_word():
    found = encode([["Playing", "in", "ROME"]], [[1, 0, 2]], cases=True)
    assert found["token_type_ids"][:] == [[0, 2, 2, 0, 1, 0]]


def test_padding():
    found = encode([["in"], ["a", "a"]], [[1], [0, 2]], length=6, pad=True)
    assert found["labels"][:] == [[-100, 1, -100, -100, -100, -100], [-100, 0, 2, -100, -100, -100]]
    assert found["attention_mask"][:] == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ([["a"], ["a", "in"]], [[0], [0]], "train: row 1 has 2 words in 'tokens' and 1 tags in 'tags'"),
        ([[]], [[]], "row 0 has no words in the column 'tokens'"),
        ([["a", " "]], [[0, 0]], "row 0, word 1 is ' ' in the column 'tokens', which must be a word"),
        ([["a", None]], [[0, 0]], "row 0, word 1 is None"),
        ([None], [[0]], "row 0 has None in the column 'tokens', it must be a list"),
        ([["a"]], [[7]], r"row 0 has the label 7, which is outside the label set \[0, 1, 2\]"),
        ([["a"]], [["B-X"]], "row 0 has the label 'B-X', which is outside the label set"),
    ],
)
def test_sentences_that_are_wrong_are_one_line(words, tags, message):
    with pytest.raises(ValueError, match=message) as error:
        encode(words, tags)
    assert "\n" not in str(error.value)

"""Tagged sentences: the scores of their spans against conlleval's algorithm by hand, and what is no such sentence."""

import itertools
import random

import numpy as np
import pytest
from conlleval import conlleval
from datasets import ClassLabel, Dataset, Features

from hf_rat.data.files import read_file
from hf_rat.data.generated_sentences import SENTENCES, generated_sentences
from hf_rat.data.metrics import METRICS
from hf_rat.data.reading import Reading
from hf_rat.data.sources import Files, Wanted
from hf_rat.data.tagged import count_spans, cut, has_tags, span_scores, tag_labels
from hf_rat.data.task import Task
from hf_rat.data.tasks import TAGGED

TAGS = ("O", "B-A", "I-A", "B-B", "I-B")
WORDS = Task("made up", ("tokens",), TAGS, ("span_f1",), None, "", label_column="tags", tagged=True)


def scored(expected, predicted):
    """Of sentences of tags."""
    words = np.array([len(tags) for tags in expected])
    numbers = [np.array([TAGS.index(tag) for tags in side for tag in tags]) for side in (predicted, expected)]
    return span_scores(TAGS, *numbers, words)


@pytest.mark.parametrize(
    ("expected", "predicted", "right", "of_expected", "of_predicted"),
    [
        ("O I-A I-A O", "O B-A I-A O", 1, 1, 1),  # IOB1 and IOB2 of one span
        ("O I-A O", "O I-A I-A", 0, 1, 1),
        ("B-A I-B", "B-A B-B", 2, 2, 2),  # I- of another type begins a span
        ("I-A I-B I-A", "I-A I-B I-B", 1, 3, 2),
        ("B-A I-A B-A", "I-A I-A I-A", 0, 2, 1),  # only B- parts two of one type
        ("I-A B-A", "B-A B-A", 2, 2, 2),
        ("B-A B-A", "B-A I-A", 0, 2, 1),
        ("B-A I-A", "B-B I-B", 0, 1, 1),
        ("O O", "O O", 0, 0, 0),
        ("O O", "B-A O", 0, 0, 1),
    ],
)
def test_odd_sequences_counted_by_hand(expected, predicted, right, of_expected, of_predicted):
    found = scored([expected.split()], [predicted.split()])
    assert found["span_precision"] == (right / of_predicted if of_predicted else 0.0)
    assert found["span_recall"] == (right / of_expected if of_expected else 0.0)
    assert found == pytest.approx(conlleval([expected.split()], [predicted.split()]))
    assert count_spans([expected.split()]).total() == of_expected


def test_every_pair_of_short_sequences_is_scored_as_conlleval_does():
    for length in (1, 2):
        for expected, predicted in itertools.product(itertools.product(TAGS, repeat=length), repeat=2):
            assert scored([expected], [predicted]) == pytest.approx(conlleval([expected], [predicted]))


def test_many_random_sentences_are_scored_as_conlleval_does():
    rng = random.Random(0)
    for _ in range(200):
        sides = [], []
        for _ in range(rng.randint(1, 6)):
            tags = rng.choices(TAGS, k=rng.randint(1, 9))
            sides[0].append(tags)
            sides[1].append([tag if rng.random() < 0.6 else rng.choice(TAGS) for tag in tags])
        assert scored(*sides) == pytest.approx(conlleval(*sides))


def test_a_span_ends_with_its_sentence():
    """One sentence that ends in a span, and one that begins with I- of the same type: two spans."""
    assert scored([["I-A"], ["I-A"]], [["I-A"], ["I-A"]])["span_recall"] == 1.0
    assert count_spans([["I-A"], ["I-A"]]) == {"A": 2}


def test_iob1_and_iob2_of_the_same_spans_have_the_same_scores():
    """Made up: spans are laid out at random, and written in both ways."""
    rng = random.Random(1)

    def written(spans, size, second):
        tags, before = ["O"] * size, None
        for begin, end, kind in spans:
            touches = before is not None and before[1] == begin and before[2] == kind
            tags[begin] = f"{'B' if second or touches else 'I'}-{kind}"
            tags[begin + 1 : end] = [f"I-{kind}"] * (end - begin - 1)
            before = begin, end, kind
        return tags

    def laid(size):
        spans, at = [], 0
        while at < size:
            at += rng.randint(0, 2)
            end = min(at + rng.randint(1, 3), size)
            if at < end:
                spans.append((at, end, rng.choice("AB")))
            at = end
        return spans

    sides = [[(laid(size), size) for size in range(1, 15)] for _ in range(2)]
    first, second = (
        scored(*([written(spans, size, iob2) for spans, size in side] for side in sides)) for iob2 in (False, True)
    )
    assert first == second
    hits = sum(len({*a} & {*b}) for (a, _), (b, _) in zip(*sides, strict=True))
    assert second["span_recall"] == pytest.approx(hits / sum(len(spans) for spans, _ in sides[0]))


def rows(words, tags):
    return Dataset.from_dict({"tokens": words, "tags": tags})


def test_both_tags_of_every_type_are_labels():
    labels = tag_labels(rows([["a", "b"]], [["I-Z", "B-K"]]), "tags", "train")
    assert labels.names == ("O", "B-K", "I-K", "B-Z", "I-Z")
    assert labels.number("I-K", 0, "validation") == 2
    named = Dataset.from_dict({"tags": [[2, 0]]}, Features({"tags": [ClassLabel(names=["B-A", "I-A", "O"])]}))
    labels = tag_labels(named, "tags", "train")
    assert labels.names == ("B-A", "I-A", "O")
    assert labels.number(2, 0, "validation") == 2


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([["O", "PER"]], "train: row 0, word 1 has the tag 'PER', which is not IOB: O, B-TYPE or I-TYPE"),
        ([["O"], ["E-PER"]], "train: row 1, word 0 has the tag 'E-PER'"),
        ([["B-"]], "'B-', which is not IOB"),
        ([["b-per"]], "'b-per', which is not IOB"),
        ([[0, 3]], "row 0, word 0 has the tag 0, which is not IOB.*numbers need the names of the tags"),
        ([["O"], ["O", "O"]], "every tag in 'tags' is O, so there is nothing to learn"),
    ],
)
def test_tags_that_are_not_iob_are_one_line(tags, message):
    with pytest.raises(ValueError, match=message) as error:
        tag_labels(rows([["a"]] * len(tags), tags), "tags", "train")
    assert "\n" not in str(error.value)


def test_names_of_tags_that_are_not_iob_are_one_line():
    named = Dataset.from_dict({"tags": [[0]]}, Features({"tags": [ClassLabel(names=["NN", "VB"])]}))
    with pytest.raises(ValueError, match="the column 'tags' names the tag 'NN', which is not IOB"):
        tag_labels(named, "tags", "train")


def test_pieces_put_together_are_the_sentences():
    words = [[f"w{row}.{place}" for place in range(size)] for row, size in enumerate((1, 5, 6, 11, 12))]
    tags = [[f"I-{word}" for word in sentence] for sentence in words]
    pieces = cut(rows(words, tags), WORDS, 5, "train")
    assert [len(piece) for piece in pieces["tokens"]] == [1, 5, 5, 1, 5, 5, 1, 5, 5, 2]
    for column, whole in (("tokens", words), ("tags", tags)):
        assert [*itertools.chain(*pieces[column])] == [*itertools.chain(*whole)]


def test_a_test_split_has_tags_or_not():
    assert has_tags(rows([["a"], ["b"]], [["O"], ["O"]]), "tags", "test")
    assert not has_tags(rows([["a"], ["b"]], [None, []]), "tags", "test")
    assert not has_tags(Dataset.from_dict({"tokens": [["a"]]}), "tags", "test")
    with pytest.raises(ValueError, match="test: row 1 has no tags in 'tags', row 0 has some"):
        has_tags(rows([["a"], ["b"]], [["O"], None]), "tags", "test")


CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP B-ORG
rejects VBZ I-VP O

-DOCSTART- -X- -X- O

Peter NNP I-NP B-PER
"""


def read(path, content, **reading):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_file("--train_file", path, Reading(tagged=True, **reading))


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "eng.testa", "a"])
def test_columns_of_conll(tmp_path, name):
    found = read(tmp_path / name, CONLL)
    assert found.to_dict() == {
        "tokens": [["EU", "rejects"], ["Peter"]],
        "tags": [["B-ORG", "O"], ["B-PER"]],
    }
    assert found.info.description == "2 lines -DOCSTART- left out"


def test_columns_that_have_names_are_all_read(tmp_path):
    found = read(tmp_path / "a.conll", CONLL, column_names=("word", "pos", "chunk", "ner"))
    assert found["pos"][:] == [["NNP", "VBZ"], ["NNP"]]
    assert found["ner"][:] == [["B-ORG", "O"], ["B-PER"]]


def test_line_ends_tabs_a_no_break_space_and_no_last_blank_line(tmp_path):
    found = read(tmp_path / "a.conll", "\ufeffa\tO\r\n \r\n10\u00a0000  B-N\r\n".encode())
    assert found.to_dict() == {"tokens": [["a"], ["10\u00a0000"]], "tags": [["O"], ["B-N"]]}


def test_words_without_tags(tmp_path):
    assert read(tmp_path / "a.conll", "a\nb\n\nc\n").to_dict() == {"tokens": [["a", "b"], ["c"]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\nb\n", r"line 2 has 1 columns \(b\), line 1 has 2; a line is a word and its tag"),
        ("\na O\n\nNew York B-LOC\n", r"line 4 has 3 columns \(New York B-LOC\), line 2 has 2"),
        ("\n \n", "the file is empty"),
        ("-DOCSTART- O\n", "the file is empty"),
        ("a O\n\né O\n".encode("latin-1"), r"row 1 \(line 3, byte 0xe9\) is not utf-8"),
    ],
)
def test_column_files_that_are_wrong_are_one_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / "a.conll", content)
    assert "\n" not in str(error.value)


def test_column_files_are_for_tagged_words_only(tmp_path):
    (tmp_path / "a.conll").write_text(CONLL)
    with pytest.raises(ValueError, match=r"the ending must be one of \.csv"):
        read_file("--train_file", tmp_path / "a.conll")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"tokens": [["a"]], "words": [["a"]], "tags": [["B-A"]]},
            "text_column_names is needed, there is tokens and words",
        ),
        (
            {"tokens": [["a"]], "tags": [["B-A"]], "ner_tags": [["B-A"]]},
            "label_column_name is needed, there is ner_tags",
        ),
        ({"text": ["a"], "tags": [["B-A"]]}, "there is neither tokens nor words; the columns are text, tags"),
    ],
)
def test_columns_that_cannot_be_known_ask_for_the_flag(tmp_path, columns, message):
    Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    source = Files({"train": str(tmp_path / "a.parquet")}, Reading(tagged=True), Wanted(tagged=True))
    with pytest.raises(ValueError, match=message):
        source.read(["train"])


def test_the_generated_sentences_have_wrong_tags_in_training_only():
    data, again = generated_sentences(seed=3), generated_sentences(seed=3)
    assert {split: len(part) for split, part in data.items()} == {"train": 300, "validation": 1000, "test": 500}
    assert all(data[split].to_dict() == again[split].to_dict() for split in data)
    assert data["train"].features["tags"].feature.names == list(SENTENCES.labels)

    def after(split, word):
        """The types of what stands behind a word that only a place follows."""
        found = []
        for words, tags in zip(data[split]["tokens"], data[split]["tags"], strict=True):
            found += [SENTENCES.labels[tags[at + 1]] for at, each in enumerate(words[:-1]) if each == word]
        return found

    assert {*after("validation", "near")} == {*after("test", "near")} == {"B-LOC"}
    wrong = [tag != "B-LOC" for tag in after("train", "near")]
    assert 0 < sum(wrong) < len(wrong) / 2


def test_the_row_of_conll_2003():
    (task,) = TAGGED
    assert task.labels == ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
    assert "span_f1" not in METRICS  # which are of rows

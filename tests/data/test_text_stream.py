"""A text as a stream: what its tokens are, in which order, how lines end, and how files are read."""

import random

import pytest
from transformers import AutoTokenizer

from hf_rat.data.reading import Reading
from hf_rat.data.text_stream import encode_lines, read_text, stream_tokenizer

LINES = ["the u.s. did n't <unk> N", "", "  The the\tmarket 's ", "naïve the"]


def tokens(lines, tokenizer):
    return tokenizer.convert_ids_to_tokens(encode_lines(lines, tokenizer).tolist())


def test_words_are_what_stands_between_spaces_and_lines_end():
    tokenizer = stream_tokenizer(LINES, "words")
    expected = [word for line in LINES for word in [*line.split(), "<eos>"]]
    assert tokens(LINES, tokenizer) == expected
    kinds = {word for line in LINES for word in line.split()}
    assert len(tokenizer) == len(kinds | {"<unk>", "<eos>"})
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<eos>", "the"]  # then by count
    assert tokens(["a the"], tokenizer) == ["<unk>", "the", "<eos>"]


def test_characters_are_each_one_with_the_spaces():
    lines = ["ab  c", "", "a\tß日"]
    tokenizer = stream_tokenizer(lines, "characters")
    assert tokens(lines, tokenizer) == ["a", "b", " ", " ", "c", "<eos>", "<eos>", "a", "\t", "ß", "日", "<eos>"]
    assert tokenizer.decode(encode_lines(["ab  c"], tokenizer)[:-1]) == "ab  c"


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_it_saves_and_loads_and_ends_no_prompt(kind, tmp_path):
    tokenizer = stream_tokenizer(LINES, kind, lowercase=True)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert encode_lines(LINES, loaded).equal(encode_lines(LINES, tokenizer))
    assert loaded.eos_token_id not in loaded("the the")["input_ids"]
    assert "T" not in loaded.get_vocab()


def test_rare_words_and_large_vocabularies():
    random.seed(0)
    lines = [" ".join(random.choices(["a", "b", "c", "d", "e"], weights=[50, 30, 10, 2, 1], k=20)) for _ in range(30)]
    counts = {word: " ".join(lines).split().count(word) for word in "abcde"}
    often = stream_tokenizer(lines, "words", min_count=counts["d"])
    assert set(often.get_vocab()) == {"<unk>", "<eos>", *(word for word in counts if counts[word] >= counts["d"])}
    assert set(stream_tokenizer(lines, "words", max_size=4).get_vocab()) == {"<unk>", "<eos>", "a", "b"}


@pytest.mark.parametrize(("lines", "known"), [(["a a", "a"], 1), (["", " "], 0), (["<unk> <unk>", "<eos>"], 0)])
def test_nothing_to_predict(lines, known):
    with pytest.raises(ValueError, match=f"{known} are known beside <unk> and <eos>"):
        stream_tokenizer(lines, "words")


def test_files(tmp_path):
    path = tmp_path / "text.tokens"
    path.write_bytes(" = A = \n\nsome é text \n".encode("latin-1"))
    assert read_text("--train_file", path, Reading("latin-1"))["text"][:] == [" = A = ", "", "some é text "]
    with pytest.raises(ValueError, match=r"--train_file '.*text.tokens': row 2 .* is not utf-8"):
        read_text("--train_file", path, Reading())
    with pytest.raises(ValueError, match="no such file"):
        read_text("--train_file", tmp_path / "none.txt", Reading())
    for content in ("", "\n \n"):
        path.write_text(content)
        with pytest.raises(ValueError, match="the file is empty"):
            read_text("--train_file", path, Reading())
    table = tmp_path / "table.csv"
    table.write_text("text,label\na b,0\nc,1\n")
    assert read_text("--train_file", table, Reading())["text"][:] == ["a b", "c"]

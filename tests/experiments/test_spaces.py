"""Ranges in methods and flags: what is read, what is put in their place, what is refused."""

import shlex

import pytest

from hf_rat.experiments.spaces import Range, filled, grid, joined, ranges, samples


def read(line):
    return ranges(joined(shlex.split(line)), "--methods")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{0.5, 1, 4}", Range("x", ("0.5", "1", "4"))),
        ("{a,b}", Range("x", ("a", "b"))),
        ("{0.01..1}", Range("x", (), 0.01, 1.0)),
        ("{0.01 .. 1 log}", Range("x", (), 0.01, 1.0, log=True)),
        ("{1e-5..1e-3 log}", Range("x", (), 1e-5, 1e-3, log=True)),
        ("{-2..3}", Range("x", (), -2.0, 3.0)),
        ("{1..5 int}", Range("x", (), 1.0, 5.0, whole=True)),
        ("{1..512 int log}", Range("x", (), 1.0, 512.0, whole=True, log=True)),
        ("{1..512 log int}", Range("x", (), 1.0, 512.0, whole=True, log=True)),
        ("{rat(epsilon=1, alpha=2), fgm}", Range("x", ("rat(epsilon=1, alpha=2)", "fgm"))),
    ],
)
def test_a_range_is_read(text, expected):
    assert ranges([f"x={text}"], "") == [expected]


def test_names_are_those_of_arguments_and_flags():
    found = read(
        "--reg 'rdrop(alpha={1, 2}) + {0.1, 1} * vat(alpha={3, 4}, epsilon = {1..2})' --lr {1..2} --eval-x={a,b}"
    )
    assert [one.name for one in found] == ["alpha", "value", "alpha#2", "epsilon", "lr", "eval_x"]


def test_words_that_the_shell_took_apart_are_one_range():
    line = ["--learning_rate", "{1e-5,", "5e-5}", "--epochs", "{1..5", "int}", "--fp16"]
    assert joined(line) == ["--learning_rate", "{1e-5, 5e-5}", "--epochs", "{1..5 int}", "--fp16"]
    assert filled(joined(line), ["5e-5", "3"]) == ["--learning_rate", "5e-5", "--epochs", "3", "--fp16"]


def test_json_is_no_range():
    words = ["--lr_scheduler_kwargs", '{"min_lr": 1e-6, "b": {"c": 1}}', "--x", "{}", "--lr", "{1, 2}"]
    assert [one.name for one in ranges(words, "")] == ["lr"]
    assert filled(words, ["2"]) == [*words[:-1], "2"]


def test_every_choice_and_both_ends_are_among_the_samples():
    found = [" ".join(words) for words in samples(["rat(epsilon={0.1..2}, alpha={a, b, c})", "--n", "{1..4 int}"], "")]
    assert found == [
        "rat(epsilon=0.1, alpha=a) --n 1",
        "rat(epsilon=2.0, alpha=b) --n 4",
        "rat(epsilon=0.1, alpha=c) --n 1",
    ]
    assert list(samples(["plain"], "")) == [["plain"]]


def test_the_grid_is_every_setting():
    assert grid(read("--a {1,2} --b {x,y,z}")) == [(a, b) for a in "12" for b in "xyz"]
    assert grid([]) == [()]
    assert grid(read("--a {1,2} --b {1..2}")) is None


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 1e-5 / 3, 123456789.123])
def test_numbers_are_short_and_stay_within_the_ends(value):
    assert float(Range("x", (), 0.0, 1e9).text(value)) == pytest.approx(value, rel=1e-5)
    narrow = Range("x", (), value, value * (1 + 1e-9))
    assert value <= float(narrow.text(value)) <= value * (1 + 1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rat(epsilon={0.5})", "the range '{0.5}' of epsilon needs two values or more"),
        ("rat(epsilon={})", "of epsilon needs two values"),
        ("rat(epsilon={1,,2})", "needs two values"),
        ("rat(epsilon={1, 1})", "the same value twice"),
        ("rat(epsilon={2..1})", "from a number to a larger one"),
        ("rat(epsilon={1..inf})", "from a number to a larger one"),
        ("rat(epsilon={a..b})", "from 'a' to 'b', which are not both numbers"),
        ("rat(epsilon={0..1 log})", "must begin above 0"),
        ("rat(epsilon={0.5..3 int})", "ends must be whole"),
        ("rat(epsilon={1..3 integer})", "ends with 'integer'; it may end with log, int or both"),
        ("rat(epsilon={1..3 int int})", "ends with 'int int'"),
        ("rat(epsilon={1..})", "cannot be read"),
        ("rat(epsilon={1..2, 3})", "cannot be read"),
        ("rat(epsilon={1, 2)", "a brace without its partner"),
        ("rat(epsilon=1})", "a brace without its partner"),
        ("rat(epsilon={1, {2, 3}})", "a range within another one"),
    ],
)
def test_what_cannot_be_read_is_one_line(text, message):
    with pytest.raises(ValueError, match=r"^--methods: ") as error:
        ranges([text], "--methods")
    assert message in str(error.value)
    assert "\n" not in str(error.value)

"""Slips of the keyboard: laws of the text that comes out."""

import math
import re
from collections import Counter

import pytest

from hf_rat.analysis.character_noise import KINDS, NEIGHBOURS, PER, noisy

TEXT = " ".join(["The plot was thin, but Ängström and 你好 played 24 scenes well."] * 40)
LETTERS = " ".join(["the quick brown fox jumps over a lazy dog"] * 60)


def changed(before, after):
    assert len(before) == len(after)
    return {index for index, (one, other) in enumerate(zip(before, after, strict=True)) if one != other}


def is_within(part, whole):
    """Whether the letters of `part` stand in `whole` in their order."""
    rest = iter(whole)
    return all(letter in rest for letter in part)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("text", ["", " ", "a", TEXT, "tab\tand\nline  end "])
def test_at_rate_zero_nothing_changes(text, per):
    assert noisy(text, 0.0, 3, KINDS, per) == text


@pytest.mark.parametrize("per", PER)
def test_the_seed_decides(per):
    first = noisy(TEXT, 0.3, 1, KINDS, per)
    assert first == noisy(TEXT, 0.3, 1, KINDS, per)
    assert first != noisy(TEXT, 0.3, 2, KINDS, per)
    assert first != TEXT


@pytest.mark.parametrize("kind", KINDS)
def test_spaces_stay(kind):
    assert re.sub(r"\S", "", noisy(TEXT, 0.5, 0, (kind,))) == re.sub(r"\S", "", TEXT)


def test_the_rate_is_of_characters():
    letters = len(LETTERS.replace(" ", ""))
    for rate in (0.05, 0.3, 0.8):
        hits = len(changed(LETTERS, noisy(LETTERS, rate, 0, ("qwerty",))))
        assert abs(hits - rate * letters) < 4 * math.sqrt(letters * rate * (1 - rate))
        left = noisy(LETTERS, rate, 0, ("delete",))
        assert len(LETTERS) - len(left) == hits  # the same characters are hit, whatever is done to them
        assert len(noisy(LETTERS, rate, 0, ("insert",))) - len(LETTERS) == hits


def test_of_words_as_many_as_the_rate_says():
    words = LETTERS.split()
    for rate, count in ((0.001, 1), (0.3, int(0.3 * len(words))), (1.0, len(words))):
        noised = noisy(LETTERS, rate, 0, ("qwerty",), "word").split()
        apart = [len(changed(*pair)) for pair in zip(words, noised, strict=True)]
        assert Counter(apart) == {0: len(words) - count, 1: count} or (count == len(words) and set(apart) == {1})


@pytest.mark.parametrize("per", PER)
def test_what_is_hit_at_a_rate_is_hit_at_a_higher_one(per):
    sets = [changed(LETTERS, noisy(LETTERS, rate, 5, ("qwerty",), per)) for rate in (0.1, 0.2, 0.6)]
    assert sets[0] < sets[1] < sets[2]


def test_what_each_kind_does():
    assert noisy("abc de", 1.0, 0, ("delete",)) == " "
    assert noisy("ab cd e", 1.0, 0, ("swap",)) == "ba dc e"
    inserted = noisy(TEXT, 0.4, 0, ("insert",))
    assert is_within(TEXT, inserted)
    assert is_within(noisy(TEXT, 0.4, 0, ("delete",)), TEXT)
    for before, after in zip(TEXT.split(), noisy(TEXT, 0.4, 0, ("swap",)).split(), strict=True):
        assert sorted(before) == sorted(after)
    for before, after in zip("Gg" * 50, noisy("Gg" * 50, 1.0, 0, ("qwerty",)), strict=True):
        assert after.lower() in "tyfhvb"
        assert before.isupper() == after.isupper()
    assert noisy("你好, Ä!", 1.0, 0, ("qwerty",)) == "你好, Ä!"  # no keys


def test_neighbours_are_those_of_the_keyboard():
    by_hand = {"q": "12wa", "a": "qwsz", "s": "awedxz", "g": "ftyhbv", "p": "o0l", "m": "njk", "1": "2q", "0": "9op"}
    for key, near in by_hand.items():
        assert sorted(NEIGHBOURS[key]) == sorted(near), key
    for key, near in NEIGHBOURS.items():
        assert all(key in NEIGHBOURS[other] for other in near)


def test_every_kind_is_drawn():
    lengths = Counter(len(noisy("fr", 1.0, seed)) for seed in range(300))
    assert set(lengths) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rate": 1.1}, "rate=1.1: a share of characters from 0 to 1"),
        ({"rate": float("nan")}, "rate=nan"),
        ({"rate": 0.1, "per": "line"}, "per='line'"),
        ({"rate": 0.1, "kinds": ("delete", "typo")}, r"kinds=\('delete', 'typo'\): give one or several of delete"),
        ({"rate": 0.1, "kinds": ()}, r"kinds=\(\)"),
    ],
)
def test_what_cannot_be(arguments, said):
    with pytest.raises(ValueError, match=said):
        noisy("text", seed=0, **arguments)

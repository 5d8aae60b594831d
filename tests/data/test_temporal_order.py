"""The temporal order problem, by its rules."""

import numpy as np
import pytest

from hf_rat.data.temporal_order import CLASSES, SYMBOLS, temporal_order


@pytest.mark.parametrize("length", [3, 15, 30, 31])
def test_a_marker_stands_in_each_of_the_first_thirds_and_nothing_else_tells(length):
    vectors, labels = temporal_order(3000, length, seed=0)
    assert vectors.shape == (3000, length, 4)
    assert vectors.dtype == np.float32
    assert (vectors.sum(2) == 1).all()
    assert set(np.unique(vectors)) == {0, 1}
    places = set()
    for row, label in zip(vectors, labels, strict=True):
        text = "".join(SYMBOLS[place] for place in row.argmax(1))
        first, second = (at for at, symbol in enumerate(text) if symbol in "AB")
        assert 0 <= first < length // 3 <= second < 2 * length // 3
        assert CLASSES[label] == text[first] + text[second]
        places.add((first, second))
    # Every place of both thirds occurs, every class about equally often, and the distractors too.
    assert {first for first, _ in places} == set(range(length // 3))
    assert {second for _, second in places} == set(range(length // 3, 2 * length // 3))
    assert (np.bincount(labels, minlength=4) > 650).all()
    share = vectors[..., 2].sum() / vectors[..., 2:].sum()
    assert 0.45 < share < 0.55


def test_a_seed_makes_the_same_sequences_and_another_one_others():
    same, other = temporal_order(50, 15, seed=3), temporal_order(50, 15, seed=4)
    np.testing.assert_array_equal(same[0], temporal_order(50, 15, seed=3)[0])
    assert not np.array_equal(same[0], other[0])
    with pytest.raises(ValueError, match="length=2: at least 3"):
        temporal_order(50, 2, seed=0)

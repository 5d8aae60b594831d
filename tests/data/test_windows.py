"""The batches of truncated back-propagation, against a loop over the tokens of a list."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_rat.data.windows import IGNORED, Windows

TEXT = torch.arange(100, 204)  # each token tells its place


def batches(windows):
    return list(DataLoader(windows, batch_size=windows.columns))


@pytest.mark.parametrize(("columns", "length"), [(1, 7), (4, 5), (3, 200), (7, 1), (20, 35)])
def test_windows_are_a_loop_over_columns(columns, length):
    text = TEXT.tolist()
    steps = (len(text) - 1) // columns
    expected = []
    for first in range(0, steps, length):
        rows = []
        for column in range(columns):
            own = text[column * steps :][: steps + 1]  # a column and the token after it
            rows.append([(own[t], own[t + 1]) for t in range(first, min(first + length, steps))])
        expected.append(torch.tensor(rows))
    found = batches(Windows(TEXT, columns, length))
    assert len(found) == len(expected)
    for batch, pairs in zip(found, expected, strict=True):
        assert batch["input_ids"].equal(pairs[:, :, 0])
        assert batch["shift_labels"].equal(pairs[:, :, 1])


@pytest.mark.parametrize("columns", [1, 2, 7, 10, 103, 500])
@pytest.mark.parametrize("length", [1, 9, 1000])
def test_a_whole_text_is_predicted_once_and_from_the_token_before(columns, length):
    windows = Windows(TEXT, columns, length, whole=True)
    seen = []
    for batch in batches(windows):
        scored = batch["shift_labels"] != IGNORED
        seen += list(zip(batch["input_ids"][scored].tolist(), batch["shift_labels"][scored].tolist(), strict=True))
    assert sorted(seen) == list(zip(TEXT[:-1].tolist(), TEXT[1:].tolist(), strict=True))
    assert windows.scored == len(TEXT) - 1


def test_what_training_leaves_out_is_less_than_a_step():
    windows = Windows(TEXT, 20, 35)
    assert windows.scored == 100
    assert all((batch["shift_labels"] != IGNORED).all() for batch in batches(windows))


def test_variable_windows_cover_each_column_in_every_epoch():
    windows = Windows(torch.arange(9000), 3, 35, variable=True, seed=5)
    orders = []
    for epoch in (0, 1, 0):
        windows.set_epoch(epoch)
        found = batches(windows)
        assert torch.cat([batch["input_ids"] for batch in found], 1).equal(torch.arange(3 * 2999).view(3, 2999))
        orders.append([batch["input_ids"].shape[1] for batch in found])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])  # every epoch has as many steps
    other = Windows(torch.arange(9000), 3, 35, variable=True, seed=6)
    assert other.lengths.tolist() != orders[0]


def test_variable_lengths_are_drawn_as_published():
    lengths = Windows(torch.zeros(2_000_000, dtype=torch.int64), 1, 70, variable=True, seed=1).lengths
    assert lengths.min() >= 1  # the last one is what is left
    assert np.sort(lengths)[1] >= 5
    short = lengths < 52.5  # between the middles 35 and 70, each 3.5 deviations away
    count = len(lengths)
    assert short.mean() == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / count) ** 0.5)
    # int() cuts, which takes half a step off the mean and adds a twelfth to the variance.
    for part, middle in ((lengths[~short], 69.5), (lengths[short], 34.5)):
        assert part.mean() == pytest.approx(middle, abs=4 * 5 / len(part) ** 0.5)
        assert part.std() == pytest.approx((25 + 1 / 12) ** 0.5, rel=4 / (2 * len(part)) ** 0.5)


def test_what_describes_windows_tells_apart_what_decides_them():
    usual = Windows(TEXT, 4, 5).description
    assert Windows(TEXT.clone(), 4, 5, seed=3).description == usual  # a seed decides variable windows only
    others = [
        Windows(TEXT.flip(0), 4, 5),
        Windows(TEXT, 5, 5),
        Windows(TEXT, 4, 6),
        Windows(TEXT, 4, 5, variable=True),
        Windows(TEXT, 4, 5, variable=True, seed=1),
    ]
    told = [usual, *(windows.description for windows in others)]
    assert all(one != two for n, one in enumerate(told) for two in told[:n])


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_a_text_without_a_step_in_each_column(tokens):
    with pytest.raises(ValueError, match=f"a text of {tokens} tokens has no step for each of 4 columns"):
        Windows(torch.zeros(tokens, dtype=torch.int64), 4, 5)

"""Curves over rows: their intervals against formulas and another library, and what is paired with what."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bag import Bag
from datasets import Dataset
from scipy import stats

from hf_rat.analysis.answers import Answers, answers_of
from hf_rat.analysis.attacked_texts import only, read_attacked
from hf_rat.analysis.robustness import attack_curve, difference, noise_curve, noisy_texts, point
from hf_rat.analysis.robustness_pictures import picture_of_curve
from hf_rat.analysis.rows import Rows
from hf_rat.analysis.subject import Subject
from hf_rat.data.encoding import Labels
from hf_rat.data.vocabulary import word_tokenizer

TEXTS = ("good film", "bad film", "a good cast", "a bad end", "very good", "so bad", "good good", "bad bad")
ROWS = Rows(Labels.of_names(["no", "yes"]), tuple((text,) for text in TEXTS), (1, 0) * 4, tuple(range(0, 16, 2)))


def subject(name, seed=0, rows=ROWS):
    tokenizer, _ = word_tokenizer(Dataset.from_dict({"text": list(TEXTS)})["text"])
    model = Bag()
    model.head.weight.data.add_(0.3 * seed)
    return Subject(name, Path(name), model, tokenizer, rows.labels, rows, batch_size=3)


def some(seed, n=60):
    rng = np.random.default_rng(seed)
    return Answers(rng.exponential(size=n), rng.random(n) < 0.7)


def test_intervals_are_those_of_the_formulas():
    one, n = some(0), 60
    found, share = point(one), one.right.mean()
    z = stats.norm.ppf(0.975)  # Wilson 1927
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((middle - half, middle + half))
    low, high = stats.ttest_1samp(one.losses, 0).confidence_interval(0.95)
    assert (found["loss_low"], found["loss_high"]) == pytest.approx((low, high))


def test_differences_are_paired():
    one, other = some(0), some(1)
    found = difference(one, other)
    for name, pair in (("loss", (one.losses, other.losses)), ("accuracy", (one.right * 1.0, other.right * 1.0))):
        low, high = stats.ttest_rel(*pair).confidence_interval(0.95)
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high))
    shifted = Answers(one.losses + 0.25, one.right)
    assert difference(shifted, one)["loss_low"] == pytest.approx(0.25)  # rows differ, their differences do not
    assert difference(one, one)["accuracy_high"] == 0


def test_of_one_row_and_of_a_regression():
    assert "loss_low" not in point(some(0, 1))
    values = Answers(np.array([1.0, 2.0]), None)
    assert "accuracy" not in point(values)
    assert difference(values, values) == {"loss": 0, "loss_low": 0, "loss_high": 0}


def test_all_models_read_the_same_noise_and_a_row_has_its_own():
    subjects = [subject("a"), subject("b", 1), subject("c")]
    clean = {one.name: answers_of(one.model, one.encode())[0] for one in subjects}
    curve = noise_curve(subjects, clean, [0.2, 0.9], draws=2, seed=1)
    assert curve.sizes == (0, 0.2, 0.9)
    summary = curve.summary()
    assert list(summary["differences"]) == ["b", "c"]
    for found in curve.answers.values():
        assert len(found) == 3
    for here, there in zip(curve.answers["a"], curve.answers["c"], strict=True):
        assert (here.losses == there.losses).all()  # the same model
    assert any(
        (here.losses != there.losses).any() for here, there in zip(curve.answers["a"], curve.answers["b"], strict=True)
    )
    draws = [noise_curve(subjects[:1], clean, [0.9], seed=seed).answers["a"][1].losses for seed in (1, 2)]
    assert (draws[0] != draws[1]).any()
    part = replace(subjects[0], rows=only(ROWS, [3, 5]))
    whole = noisy_texts(subjects[0], 0.5, ("qwerty",), "character", 0)
    assert noisy_texts(part, 0.5, ("qwerty",), "character", 0) == [whole[3], whole[5]]


def test_draws_are_averaged_over_each_row():
    own = subject("a")
    clean = {"a": answers_of(own.model, own.encode())[0]}
    (averaged,) = noise_curve([own], clean, [0.7], draws=3).answers["a"][1:]
    alone = [
        answers_of(
            own.model, own.encode(noisy_texts(own, 0.7, ("delete", "qwerty", "swap", "insert"), "character", n))
        )[0]
        for n in range(3)
    ]
    np.testing.assert_allclose(averaged.losses, np.mean([one.losses for one in alone], 0))
    np.testing.assert_allclose(averaged.right, np.mean([one.right for one in alone], 0))


def test_attacks_begin_at_the_clean_rows():
    subjects = [subject("a"), subject("b", 1)]
    clean = {one.name: answers_of(one.model, one.encode())[0] for one in subjects}
    curve = attack_curve(subjects, clean, "pgd", [0.1, 0.4], steps=4)
    assert curve.sizes == (0, 0.1, 0.4)
    for name, found in curve.answers.items():
        assert found[0] is clean[name]
        assert (np.diff([one.losses.mean() for one in found]) > 0).all()
    picture = picture_of_curve("pgd", json.loads(json.dumps(curve.summary())))
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 600


def write(path, columns):
    Dataset.from_dict(columns).to_csv(path)
    return path


def test_attacked_texts_are_paired_by_row(tmp_path):
    lines = {"row": [8, 2, 14], "text": ["vry good", "bda film", "bad b"], "label": ["yes", "no", "no"]}
    lines["original_text"] = ["very good", "bad film", "bad bad"]
    places, texts = read_attacked(write(tmp_path / "a.csv", lines), ROWS)
    assert places == [1, 4, 7]
    assert texts == [("bda film",), ("vry good",), ("bad b",)]
    assert [ROWS.texts[place] for place in places] == list(only(ROWS, places).texts)
    places, texts = read_attacked(write(tmp_path / "b.csv", {"text": [text.upper() for text in TEXTS]}), ROWS)
    assert places == list(range(8))
    assert texts == [(text.upper(),) for text in TEXTS]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": ["good"]}, "has 1 texts for 8 rows: give one for each in their order, or say in a column 'row'"),
        ({"row": [3], "text": ["good"]}, "line 0 is of row 3, which is none of the 8 rows studied"),
        ({"row": [2, 2], "text": ["good", "bad"]}, "row 2 stands there twice"),
        (
            {"row": [0], "text": ["good"], "label": ["no"]},
            "line 0 has the label 'no' and row 0 of the data has another",
        ),
        ({"row": [0], "text": ["x"], "original_text": ["bad film"]}, "another original_text than the text of row 0"),
        ({"row": [0], "perturbed_text": ["good"]}, "there is no column 'text'; the columns are row, perturbed_text"),
    ],
)
def test_texts_that_do_not_match_by_row(tmp_path, columns, said):
    with pytest.raises(ValueError, match=r"--texts '.*a\.csv'") as error:
        read_attacked(write(tmp_path / "a.csv", columns), ROWS)
    assert said in str(error.value)
    assert "\n" not in str(error.value)

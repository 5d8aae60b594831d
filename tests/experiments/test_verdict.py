"""The numbers of a verdict are those that one computes by hand, and its sentences say what they say."""

import json

import numpy as np
import pytest
from made_runs import accuracies, made

from hf_rat.experiments.records import read
from hf_rat.experiments.sentences import lacks, sentence, sentences_across
from hf_rat.experiments.verdict import judge

T2 = 4.302653  # Student's t, 97.5 %, 2 degrees of freedom, from a printed table


def told(folder, **asked):
    """The one cell of a comparison, and its rows by name."""
    (cell,) = judge(read([folder]), **asked).cells
    return cell, {row.method: row for row in cell.rows}


def said(folder, method, **asked):
    cell, rows = told(folder, **asked)
    return sentence(cell, rows[method], method, cell.baseline)


def test_every_number_by_hand(tmp_path):
    made(tmp_path / "plain", "plain", accuracies(0.70, 0.72, 0.74, seconds=(10, 20, 10)))
    made(tmp_path / "rat", "rat", accuracies(0.73, 0.74, 0.78, seconds=(20, 60, 20)))
    cell, rows = told(tmp_path)
    assert (cell.score, cell.baseline, cell.lower_is_better, cell.scale) == ("eval_accuracy", "plain", False, 100)
    plain, rat = rows["plain"], rows["rat"]
    assert (plain.mean, plain.sd) == (pytest.approx(0.72), pytest.approx(0.02))
    assert plain.gain is plain.corrected is None
    # Differences .03, .02, .04: mean .03, sd .01, half an interval is t sd / sqrt(3).
    half = T2 * 0.01 / 3**0.5
    assert rat.gain.mean == pytest.approx(0.03)
    assert (rat.gain.low, rat.gain.high) == (
        pytest.approx(0.03 - half, abs=1e-6),
        pytest.approx(0.03 + half, abs=1e-6),
    )
    assert (rat.gain.wins, rat.gain.n, rat.gain.p, rat.corrected) == (3, 3, 2 / 8, 2 / 8)
    assert (rat.seconds, rat.cost) == (20, 2), "medians of 20, 60, 20 and of 2, 3, 2"
    assert rat.trials is rat.held_back is rat.gap is rat.gain_on_tests_like_it is None
    assert said(tmp_path, "rat") == (
        "**rat gains** 0.5 to 5.5 points over plain with 95 % confidence "
        "(alone; 3 seeds are too few for a permutation test to confirm it)."
    )


def test_what_is_below_plain_is_said_as_loudly(tmp_path):
    made(tmp_path / "plain", "plain", accuracies(0.73, 0.74, 0.78))
    made(tmp_path / "rat", "rat", accuracies(0.70, 0.72, 0.74))
    assert said(tmp_path, "rat").startswith("**rat loses** 0.5 to 5.5 points against plain with 95 % confidence")


def test_nothing_is_settled(tmp_path):
    made(tmp_path / "plain", "plain", accuracies(0.70, 0.72, 0.74))
    made(tmp_path / "rat", "rat", accuracies(0.71, 0.71, 0.78))
    text = said(tmp_path, "rat")
    # Differences .01, -.01, .04: mean 1.33 points, sd 2.5166, half = 4.302653 * 2.5166 / sqrt(3) = 6.2516.
    assert text.startswith("Nothing is settled for rat: +1.3 points (-4.9 to +7.6); 3 seeds could only see ")
    gain = told(tmp_path)[1]["rat"].gain
    assert f"{100 * gain.detectable:.1f} points, and it takes about {gain.seeds_needed} to see" in text


def test_where_lower_is_better_a_gain_is_a_fall(tmp_path):
    made(tmp_path / "plain", "plain", {s: {"eval_loss": x} for s, x in enumerate((0.50, 0.52, 0.54))})
    made(tmp_path / "rat", "rat", {s: {"eval_loss": x} for s, x in enumerate((0.47, 0.50, 0.50))})
    cell, rows = told(tmp_path)
    assert (cell.score, cell.lower_is_better, cell.scale) == ("eval_loss", True, 1)
    assert rows["rat"].gain.mean == pytest.approx(0.03)
    assert said(tmp_path, "rat").startswith("**rat lowers** the loss by 0.0052 to 0.0548 against plain with 95 %")


def test_holm_over_methods(tmp_path):
    """Eight pairs: p is 2/256 where all differences have one sign; the others by counting signs."""
    base = [0.70, 0.71, 0.72, 0.73, 0.74, 0.75, 0.76, 0.77]
    steps = [0.01, 0.02, 0.04, 0.08, 0.011, 0.021, 0.041, 0.081]
    made(tmp_path / "a", "plain", accuracies(*base))
    made(tmp_path / "b", "all up", accuracies(*(x + d for x, d in zip(base, steps, strict=True))))
    made(tmp_path / "c", "all down", accuracies(*(x - d for x, d in zip(base, steps, strict=True))))
    signs_of = [1, 1, -1, 1, 1, 1, 1, 1]
    one_down = [x + sign * d for x, sign, d in zip(base, signs_of, steps, strict=True)]
    made(tmp_path / "d", "one down", accuracies(*one_down))
    _, rows = told(tmp_path)
    signs = [[(-1) ** (number >> bit & 1) for bit in range(8)] for number in range(256)]
    seen = sum(steps) - 2 * steps[2]
    p = sum(abs(sum(s * d for s, d in zip(sign, steps, strict=True))) >= seen - 1e-12 for sign in signs) / 256
    assert [rows[m].gain.p for m in ("all up", "all down", "one down")] == [2 / 256, 2 / 256, p]
    # Smallest times 3; the next, never below it, times 2 (as is the first of the tie); the largest once.
    assert [rows[m].corrected for m in ("all up", "all down")] == [pytest.approx(6 / 256)] * 2
    assert rows["one down"].corrected == pytest.approx(max(6 / 256, p))
    assert "(p is 0.023 after correction for 3 methods)" in said(tmp_path, "all up")
    assert said(tmp_path, "all down").startswith("**all down loses**")


def test_an_interval_that_correction_does_not_confirm_settles_nothing(tmp_path):
    made(tmp_path / "a", "plain", accuracies(*[0.7] * 8))
    steps = [0.02, 0.021, 0.022, 0.019, 0.018, 0.02, -0.004, -0.005]
    for name in ("x", "y", "z"):
        made(tmp_path / name, name, accuracies(*(0.7 + step for step in steps)))
    _, rows = told(tmp_path)
    # As far from zero as the sum are those with any sign of the last two, and their opposites: 8 of 256.
    assert (rows["x"].gain.p, rows["x"].corrected) == (8 / 256, pytest.approx(3 * 8 / 256))
    assert rows["x"].gain.low > 0
    assert said(tmp_path, "x").startswith("Nothing is settled for x: alone it gains ")
    assert said(tmp_path, "x").endswith(" with 95 % confidence, but p is 0.094 after correction for 3 methods.")


def test_six_pairs_of_many_methods_cannot_be_confirmed_and_say_so(tmp_path):
    made(tmp_path / "a", "plain", accuracies(*[0.7] * 6))
    for name in ("x", "y"):
        made(tmp_path / name, name, accuracies(*(0.7 + step for step in (0.02, 0.021, 0.022, 0.019, 0.018, 0.02))))
    assert "(alone; 6 seeds are too few for a permutation test of 2 methods to confirm it)" in said(tmp_path, "x")


def test_failed_missing_and_unscored_seeds(tmp_path):
    made(tmp_path / "a", "plain", accuracies(0.70, 0.72, 0.74, 0.76))
    made(tmp_path / "b", "rat", {1: None, 2: {"eval_accuracy": float("nan")}, 3: {"eval_accuracy": 0.8}})
    made(tmp_path / "c", "broken", {1: None, 2: None})
    made(tmp_path / "d", "elsewhere", {9: {"eval_accuracy": 0.8}})
    _, rows = told(tmp_path)
    rat = rows["rat"]
    assert (rat.failed, rat.missing, rat.unscored, dict(rat.values)) == ([1], [4, 9], [2], {3: 0.8})
    assert lacks(rat) == "seed 1 failed; seeds 4, 9 not run; seed 2 without this score"
    assert (
        said(tmp_path, "rat") == "Nothing is settled for rat: one pair (+6.0 points) says nothing about other seeds."
    )
    assert lacks(rows["broken"]) == "all seeds failed"
    assert said(tmp_path, "broken") == "Of broken nothing is known: none of its 2 runs has finished."
    assert said(tmp_path, "elsewhere") == "Of elsewhere nothing is known: it shares no finished seed with plain."
    assert lacks(rows["plain"]) == "seed 9 not run"


def test_a_baseline_that_failed_everywhere_still_has_a_table(tmp_path):
    made(tmp_path / "a", "plain", {1: None, 2: None})
    made(tmp_path / "b", "rat", accuracies(0.7, 0.8))
    _, rows = told(tmp_path)
    assert rows["rat"].mean == pytest.approx(0.75)
    assert rows["rat"].gain is None


def test_runs_that_are_the_same_are_no_gain(tmp_path):
    made(tmp_path / "a", "plain", accuracies(0.70, 0.72, 0.74))
    made(tmp_path / "b", "rdrop", accuracies(0.70, 0.72, 0.74))
    made(tmp_path / "c", "fgm", accuracies(0.71, 0.73, 0.75))
    assert said(tmp_path, "rdrop") == (
        "Of rdrop nothing is known: it scored exactly what plain scored with each of 3 seeds."
    )
    assert "+1.0 points with each of 3 seeds, and what does not vary says nothing" in said(tmp_path, "fgm")


def test_which_score_counts(tmp_path):
    both = {"eval_loss": 0.1, "eval_f1": 0.5, "eval_accuracy": 0.6, "test_accuracy": 0.7}
    made(tmp_path / "a", "plain", {1: both, 2: both})
    made(tmp_path / "b", "rat", {1: both, 2: {"eval_loss": 0.1, "eval_f1": 0.5, "eval_accuracy": 0.9}})
    assert told(tmp_path)[0].score == "eval_f1", "the first that is no loss"
    cell, rows = told(tmp_path, score="accuracy")
    assert cell.score == "eval_accuracy", "one run lacks that of the test split, and splits are not mixed"
    assert dict(rows["rat"].values) == {1: 0.6, 2: 0.9}
    made(tmp_path / "b", "rat", {2: both})
    assert told(tmp_path, score="accuracy")[0].score == "test_accuracy"
    with pytest.raises(ValueError, match=r"^--score recall: no run has it; there are: loss, f1, accuracy$"):
        told(tmp_path, score="recall")


def test_which_method_is_the_baseline(tmp_path):
    made(tmp_path / "a", "fgm", accuracies(0.7, 0.8))
    made(tmp_path / "b", "rat", accuracies(0.7, 0.9))
    assert told(tmp_path)[0].baseline == "fgm"
    assert told(tmp_path, baseline="rat")[0].baseline == "rat"
    with pytest.raises(ValueError, match=r"^--baseline plain: no run is of it; there are: fgm, rat$"):
        told(tmp_path, baseline="plain")
    made(tmp_path / "c", "plain", accuracies(0.7))
    assert told(tmp_path)[0].baseline == "plain"


def test_no_finished_run(tmp_path):
    made(tmp_path / "a", "plain", {1: None})
    with pytest.raises(ValueError, match=r"^no run has finished with a score"):
        told(tmp_path)


def test_the_score_of_training_rows_counts_only_if_asked_for(tmp_path):
    for name, value in (("plain", 0.8), ("rat", 0.7)):
        scores = {"eval_accuracy_train": value, "eval_accuracy": 1 - value}
        made(tmp_path / name, name, {1: scores, 2: scores})
    assert told(tmp_path)[0].score == "eval_accuracy"
    assert judge(read([tmp_path]), score="accuracy_train").cells[0].score == "eval_accuracy_train"


def test_trials_and_the_gap_from_held_back_data(tmp_path):
    made(tmp_path / "a", "plain", accuracies(0.70, 0.72))
    made(tmp_path / "b", "rat", accuracies(0.73, 0.75))
    search = {
        "trials": 30,
        "settings": 4,
        "chosen": {"epsilon": "0.1"},
        "held_back": {"eval_accuracy": 0.79, "eval_loss": 1},
        "log": [],
    }
    (tmp_path / "b" / "search.json").write_text(json.dumps(search))
    _, rows = told(tmp_path)
    assert (rows["rat"].settings, rows["rat"].chosen) == (4, {"epsilon": "0.1"})
    assert (rows["rat"].trials, rows["rat"].held_back, rows["rat"].gap) == (30, 0.79, pytest.approx(0.05))


def keep(folder, seed, predicted, expected, name="eval_predictions"):
    (folder / f"seed-{seed}").mkdir(parents=True, exist_ok=True)
    path = folder / f"seed-{seed}" / f"{name}.npz"
    np.savez(path, predicted=predicted, expected=expected, logits=np.zeros((len(predicted), 2), np.float32))


def with_predictions(tmp_path, metric, score):
    draw = np.random.default_rng(0)
    expected = draw.integers(0, 2, 60)
    for name, right in (("plain", 0.7), ("rat", 0.85)):
        results = {}
        for seed in (1, 2, 3):
            predicted = np.where(draw.random(60) < right, expected, 1 - expected)
            keep(tmp_path / name, seed, predicted, expected)
            results[seed] = {f"eval_{metric}": score(predicted, expected)}
        made(tmp_path / name, name, results)
    return expected


def test_an_interval_for_test_sets_like_this_one(tmp_path):
    """Over accuracy: its mean is that of the seeds' gains; it is wider than the interval over seeds alone can tell."""
    with_predictions(tmp_path, "accuracy", lambda p, e: float(sum(map(int, p == e)) / len(e)))
    cell, rows = told(tmp_path)
    wider = rows["rat"].gain_on_tests_like_it
    assert wider.mean == pytest.approx(rows["rat"].gain.mean)
    assert (wider.seeds, wider.units) == (3, 60)
    assert wider.low < wider.mean < wider.high
    assert "For test sets like this one: " in said(tmp_path, "rat")
    assert not cell.notes


def test_a_score_that_is_no_mean_over_examples(tmp_path):
    def f1(predicted, expected):
        hits = sum(1 for p, e in zip(predicted, expected, strict=True) if p == e == 1)
        return 2 * hits / (int(predicted.sum()) + int(expected.sum()))

    with_predictions(tmp_path, "f1", f1)
    _, rows = told(tmp_path)
    assert rows["rat"].gain_on_tests_like_it.mean == pytest.approx(rows["rat"].gain.mean)


def test_predictions_that_do_not_fit_are_told_and_not_used(tmp_path):
    expected = with_predictions(tmp_path, "accuracy", lambda p, e: float((p == e).mean()))
    keep(tmp_path / "rat", 2, expected, expected)
    cell, rows = told(tmp_path)
    assert rows["rat"].gain_on_tests_like_it is None
    assert "seed-2 do not give its score" in cell.notes[0]
    (tmp_path / "rat" / "seed-2" / "eval_predictions.npz").unlink()
    assert told(tmp_path)[0].notes == ["rat: predictions of 2 of 3 pairs are there; no second interval"]
    keep(tmp_path / "rat", 2, expected[:50], expected[:50])
    assert "answered other examples" in told(tmp_path)[0].notes[0]


def test_examples_that_each_seed_draws_anew_are_not_taken_for_one_test_set(tmp_path):
    for name, wrong in (("plain", 3), ("rat", 1)):
        results = {}
        for seed in (1, 2):
            expected = np.arange(10) % (seed + 1)
            predicted = np.where(np.arange(10) < wrong, 5, expected)
            keep(tmp_path / name, seed, predicted, expected)
            results[seed] = {"eval_accuracy": 1 - wrong / 10}
        made(tmp_path / name, name, results)
    cell, rows = told(tmp_path)
    assert rows["rat"].gain_on_tests_like_it is None
    assert cell.notes == ["each seed has test examples of its own: the interval over seeds is one over examples, too"]


def cells_of(tmp_path, gains, spread=(0.0, 0.01, 0.02)):
    for name, gain in gains.items():
        made(tmp_path / name / "plain", "plain", accuracies(*(0.6 + x for x in spread)), dataset=name)
        made(tmp_path / name / "rat", "rat", accuracies(*(0.6 + x + gain for x in spread)), dataset=name)
    return judge(read([tmp_path]))


def test_over_cells(tmp_path):
    verdict = cells_of(tmp_path, {"a": 0.01, "b": 0.03, "c": 0.05, "d": -0.02})
    across = verdict.across
    # 12 gains in points: three each of -2, 1, 3, 5; without three at each end: three of 1 and three of 3.
    assert across.gains["rat"].points.mean == pytest.approx(2.0)
    # Seeds of plain 60, 61, 62. P(rat > plain) + P(tie)/2 by hand: a: 61 62 63 -> (1.5 + 2.5 + 3) / 9 = 7/9;
    # b: 63 64 65 -> 1; c -> 1; d: 58 59 60 -> .5 / 9.
    assert across.gains["rat"].improvement == pytest.approx((7 / 9 + 1 + 1 + 0.5 / 9) / 4)
    assert across.mean_ranks == {"plain": pytest.approx((2 + 2 + 2 + 1) / 4), "rat": pytest.approx(5 / 4)}
    (text,) = sentences_across(across, {"rat": "rat", "plain": "plain"}, "plain", percent=True)
    assert "a run of it beats one of plain with probability 0.71." in text


def test_three_cells_are_too_few(tmp_path):
    assert cells_of(tmp_path, {"a": 0.01, "b": 0.03, "c": 0.05}).across is None


def test_a_method_that_lacks_a_cell_is_left_out_and_told(tmp_path):
    cells_of(tmp_path, {"a": 0.01, "b": 0.03, "c": 0.05, "d": 0.02})
    made(tmp_path / "a" / "fgm", "fgm", accuracies(0.6, 0.7), dataset="a")
    across = judge(read([tmp_path])).across
    assert set(across.gains) == {"rat"}
    *_, text = sentences_across(across, {"rat": "rat", "plain": "plain"}, "plain", percent=True)
    assert text == "Left out, because they have no runs that the baseline has too: `fgm` on b, c, d."


def test_the_baseline_must_be_in_every_cell(tmp_path):
    made(tmp_path / "x" / "p", "plain", accuracies(0.6), dataset="x")
    made(tmp_path / "y" / "f", "fgm", accuracies(0.6), dataset="y")
    with pytest.raises(ValueError, match=r"^--baseline plain: no run on y is of it; there are: fgm$"):
        judge(read([tmp_path]), baseline="plain")

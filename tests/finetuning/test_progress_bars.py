"""--disable_tqdm holds for the bars of datasets and of transformers too, and for the run alone."""

import pytest
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from hf_rat.cli import textcls
from hf_rat.finetuning.progress_bars import progress_bars


@pytest.fixture(autouse=True)
def _shown():
    """Bars are drawn before, and after."""
    enable_progress_bars()
    logging.enable_progress_bar()
    yield
    enable_progress_bars()
    logging.enable_progress_bar()


@pytest.mark.parametrize("disabled", [True, False])
def test_a_run_draws_bars_unless_it_is_told_not_to(disabled, tmp_path, capfd):
    rows = Dataset.from_dict({"text": ["a good one", "a bad one"] * 8, "label": [1, 0] * 8})
    rows.to_csv(tmp_path / "rows.csv")
    capfd.readouterr()
    where = ["--train_file", str(tmp_path / "rows.csv"), "--output_dir", str(tmp_path / "out")]
    small = ["--embedding_size", "8", "--min_count", "1", "--max_steps", "1"]
    textcls.run([*where, *small, "--do_train", "--use_cpu", "--disable_tqdm", str(disabled)])
    told = "".join(capfd.readouterr())
    for bar in ("Generating train split", "Tokenizing", "Numbering labels", "Writing model shards", "100%"):
        assert (bar in told) != disabled
    assert not are_progress_bars_disabled()
    assert logging.is_progress_bar_enabled()


def test_an_error_shows_them_again():
    def fail():
        assert are_progress_bars_disabled()
        raise ValueError("in a run")

    with pytest.raises(ValueError, match="in a run"), progress_bars(shown=False):
        fail()
    assert not are_progress_bars_disabled()
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("shown", [True, False])
def test_who_has_switched_them_off_sees_none(shown):
    disable_progress_bars()
    logging.disable_progress_bar()
    with progress_bars(shown):
        assert are_progress_bars_disabled()
        assert not logging.is_progress_bar_enabled()
    assert are_progress_bars_disabled()
    assert not logging.is_progress_bar_enabled()

"""`auto`: it is the expression that the pages say, shown as such, and needs nothing but the one flag."""

import inspect
import re
from pathlib import Path

import pytest
import runs
import tiny

from hf_rat import RegularizedTrainer, auto, parse
from hf_rat.regularizers.averages import Average, average_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["docs/choosing.md", "docs/methods.md", "docs/api.md"])
def test_a_page_has_its_expression(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    (said,) = set(re.findall(r"auto(?:\(\))?`[^\n`]*`(fgm\(.*?)`", text))
    assert parse(said) == auto() == parse("auto")


def test_its_card_has_its_expression():
    assert parse(inspect.getdoc(auto).splitlines()[0].removeprefix("What to begin with: ").rstrip(".")) == auto()


def test_it_is_shown_as_its_expression():
    assert "auto" not in repr(auto())
    assert parse(repr(auto())) == auto()
    assert average_of(auto()) == Average("swa", 0.5, below=0.3)


@pytest.mark.parametrize("text", ["auto(epsilon=0.1)", "auto(0.1)"])
def test_it_has_no_arguments(text):
    with pytest.raises(ValueError, match="auto"):
        parse(text)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_flag_alone_trains_and_saves_the_average(family, tmp_path, caplog):
    args = runs.arguments(output_dir=str(tmp_path), max_steps=40, reg="auto", optim="adamw_torch", learning_rate=1e-2)
    model = tiny.tiny_model(family, dropout=0.1)
    trainer = RegularizedTrainer(model, args, train_dataset=runs.easy_examples(24), data_collator=runs.collate)
    with caplog.at_level("INFO"):
        trainer.train()
    assert repr(auto()) in caplog.text
    assert "evaluated and saved: swa(0.5, below=0.3)" in caplog.text
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert ["loss_adversarial_task" in log for log in logs] == [False] * 20 + [True] * 20
    assert sum(log["loss_task"] for log in logs[16:20]) < 0.3 * sum(log["loss_task"] for log in logs[:4])
    assert trainer.averaged_steps == 20

"""The model card says what the model was trained with."""

import re

import pytest
import runs

from hf_rat import parse
from hf_rat.regularizers import RECIPES


def written_card(expression, folder, train=True):
    one = runs.trainer(expression, count=8, output_dir=str(folder))
    if train:
        one.train()
    one.create_model_card(model_name="a tiny model", tags=["testing"])
    return one, (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("expression", [*runs.SETTINGS.values(), *runs.COMPOSED])
def test_the_card_has_expression_cost_and_losses(expression, tmp_path):
    one, card = written_card(expression, tmp_path)
    assert repr(parse(expression)) in card
    assert "forward and" in card
    assert "backward passes" in card
    assert set(re.findall(r"\*\*(\w+)\*\*", card)) == set(re.findall(r"\w+", expression)) & set(RECIPES)
    last = runs.ran(one).logs[-1]
    for name, value in last.items():
        if name.startswith("loss_"):
            assert f"| {name} | {value:.4f} |" in card


@pytest.mark.parametrize(
    ("expression", "cost"),
    [
        ("plain", "1 forward and 1 backward"),
        ("fgm", "2 forward and 2 backward"),
        ("rdrop", "2 forward and 2 backward"),
        ("rat", "3 forward and 3 backward"),
        ("rat(passes=4)", "5 forward and 5 backward"),
        ("freelb(steps=4)", "4 forward and 4 backward"),
        ("vat", "3 forward and 2 backward passes and 1 for slopes"),
    ],
)
def test_the_cost_is_that_of_the_papers_recipe(expression, cost, tmp_path):
    assert cost in written_card(expression, tmp_path, train=False)[1]


def test_the_trainers_own_card_stays(tmp_path):
    _, card = written_card("rat", tmp_path)
    assert card.startswith("---\n"), "the metadata"
    assert "testing" in card.split("---")[1]
    assert "learning_rate: 0.1" in card
    assert card.count("## Regularization") == 1


def test_writing_it_again_does_not_repeat_the_section(tmp_path):
    one, card = written_card("rat", tmp_path)
    one.create_model_card(model_name="a tiny model", tags=["testing"])
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == card

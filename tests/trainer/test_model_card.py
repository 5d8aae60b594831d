"""The model card says what the model was trained with."""

import inspect
import re

import pytest
import runs
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, BertForSequenceClassification

from hf_rat import RegularizedTrainer, fgm, parse
from hf_rat.cli import glue, textcls
from hf_rat.data.generated import generated_config, generated_tokenizer
from hf_rat.regularizers import RECIPES
from hf_rat.trainer.model_card import _reference


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


def code_of(card):
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def executed(card, capsys):
    """What the code on the card prints."""
    capsys.readouterr()
    exec(code_of(card), {})
    return capsys.readouterr().out


def small_bert(tokenizer):
    return BertForSequenceClassification(generated_config(tokenizer, hidden_size=16, layers=1))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small model in a folder, and a file of texts."""
    folder, tokenizer = tmp_path_factory.mktemp("card"), generated_tokenizer()
    small_bert(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = {"text": [f"text {number}" for number in range(8)], "label": ["no", "yes"] * 4}
    Dataset.from_dict(rows).to_csv(folder / "letters.csv", index=False)
    return folder


COMMON = [
    "--do_train",
    "--do_eval",
    "--max_steps",
    "2",
    "--logging_steps",
    "1",
    "--disable_tqdm",
    "true",
    "--reg",
    "rat",
]


@pytest.mark.parametrize(
    ("command", "more", "came_about"),
    [
        (glue, ["--model_name_or_path", "{base}"], "This model is `base` (a local folder), fine-tuned"),
        (
            glue,
            ["--model_name_or_path", "{base}", "--lora_r", "2"],
            "This is a LORA adapter of `base` (a local",
        ),
        (
            textcls,
            ["--min_count", "1", "--embedding_size", "8"],
            "This model, a TextCNNForSequenceClassification,",
        ),
    ],
    ids=["finetuned", "lora", "scratch"],
)
def test_a_command_s_card_is_true_and_its_code_runs(command, more, came_about, files, tmp_path, capsys):
    rows = str(files / "letters.csv")
    more = [word.replace("{base}", str(files / "base")) for word in more]
    out = str(tmp_path / "out")
    results = command.run([*COMMON, "--train_file", rows, "--validation_file", rows, "--output_dir", out, *more])
    path = tmp_path / "out" / "README.md"
    text = path.read_text(encoding="utf-8")
    assert came_about in text
    assert "letters.csv (train)" in text
    assert "More information needed" not in text
    assert "<https://aclanthology.org/2022.findings-emnlp.480>" in text
    data = ModelCard.load(path).data
    assert data.pipeline_tag == "text-classification"
    assert "hf-rat" in data.tags
    assert str(files) not in str(data), "a path of this machine"
    scores = {result.metric_name: result.metric_value for result in data.eval_results}
    assert scores == {"Accuracy": results["eval_accuracy"], "Loss": results["eval_loss"]}
    assert re.search("'label': '(no|yes)'", executed(text, capsys))


def test_the_card_of_one_s_own_script(files, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(files / "base")
    rows = [{**tokenizer(f"text {number}"), "labels": number % 2} for number in range(8)]
    one = RegularizedTrainer(
        small_bert(tokenizer),
        runs.arguments(output_dir=str(tmp_path / "out"), eval_strategy="epoch"),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
        regularizer=fgm(),
    )
    one.train()
    one.save_model()
    for shown in (False, True):
        if shown:
            (tmp_path / "out" / "learning_curves.png").touch()
        one.create_model_card()
        text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert ("![Learning curves](learning_curves.png)" in text) == shown
    assert "was trained from scratch on data without a name (8 rows)" in text
    last = [log for log in one.state.log_history if "eval_accuracy" in log][-1]
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results == {"Accuracy": last["eval_accuracy"], "Loss": last["eval_loss"]}
    assert re.search("'label': 'LABEL_[01]'", executed(text, capsys))


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "plain"])
def test_every_recipe_s_card_links_its_paper(name):
    reference = _reference(inspect.getdoc(RECIPES[name]))
    assert re.search(r"<https://(arxiv\.org/abs/\d{4}\.\d{4,5}|aclanthology\.org/\S+)>", reference)


def test_the_training_loss_is_the_sum_of_the_components_on_the_card(tmp_path):
    _, card = written_card("rat(epsilon=0.5) + 0.5 * smart", tmp_path)
    rows = {name: float(value) for name, value in re.findall(r"^\| (loss\w*) \| ([\d.]+) \|$", card, re.MULTILINE)}
    assert sum(value for name, value in rows.items() if name != "loss") == pytest.approx(rows["loss"], abs=5e-4)
    assert not re.search(r"\| (Training|Validation) Loss \|", card)

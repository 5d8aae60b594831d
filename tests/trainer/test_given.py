"""How a regularizer is given to a trainer or a loop, and what is said when that is not how."""

import warnings

import launches
import pytest
import runs
import tiny
from torch import nn
from transformers import TrainingArguments

from hf_rat import Regularization, RegularizedTrainer, RegularizedTrainingArguments, parse, plain, rat, rdrop


def bare(tmp_path, **settings):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1, **settings)


# -- as text, and what is no regularizer ------------------------------------------------------------------------------


def test_text_is_read(tmp_path):
    one = RegularizedTrainer(tiny.tiny_model(), bare(tmp_path), regularizer="rat(epsilon=0.2) + 0.5*vat")
    assert one.regularizer == parse("rat(epsilon=0.2) + 0.5 * vat")
    assert Regularization("rdrop", tiny.tiny_model(dropout=0.1)).regularizer == rdrop()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (rat, r"regularizer=rat is the recipe itself; call it: regularizer=rat\(\)"),
        ("ratt", r"regularizer='ratt' names an unknown regularizer 'ratt'; did you mean rat"),
        (0.1, r"regularizer=0.1 is neither a regularizer nor its text"),
        (lambda: rat(), "neither a regularizer nor its text"),
    ],
)
def test_what_is_no_regularizer_is_one_line(given, said, tmp_path):
    for build in (
        lambda: RegularizedTrainer(tiny.tiny_model(), bare(tmp_path), regularizer=given),
        lambda: Regularization(given, tiny.tiny_model()),
    ):
        with pytest.raises(ValueError, match=said) as error:
            build()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["reg", "reg_epsilon"])
def test_a_field_of_the_arguments_is_no_keyword_of_the_trainer(name, tmp_path):
    with pytest.raises(TypeError, match=rf"no argument {name}='?.*RegularizedTrainingArguments\({name}=") as error:
        RegularizedTrainer(tiny.tiny_model(), bare(tmp_path), **{name: "rat"})
    assert "\n" not in str(error.value)


# -- searches ---------------------------------------------------------------------------------------------------------


def searching(args, space, trials=3, **options):
    """The trainer and, per trial, what it was trained with."""
    pytest.importorskip("optuna")
    seen = []

    class Noting(RegularizedTrainer):
        def _begin_run(self):
            super()._begin_run()
            seen.append(repr(self.regularization.regularizer))

    one = Noting(
        args=args,
        model_init=lambda: tiny.tiny_model(dropout=0.1),
        train_dataset=runs.examples(4),
        eval_dataset=runs.examples(4),
        data_collator=runs.collate,
        **options,
    )
    how = {"direction": "minimize", "backend": "optuna", "compute_objective": lambda metrics: metrics["eval_loss"]}
    one.hyperparameter_search(hp_space=space, n_trials=trials, **how)
    return seen


@pytest.mark.parametrize("field", ["reg", "reg_epsilon"])
@pytest.mark.parametrize("kind", [RegularizedTrainingArguments, TrainingArguments])
def test_a_search_that_would_change_nothing_is_refused(field, kind, tmp_path):
    args = kind(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1)
    values = {"reg": ["rat", "rdrop"], "reg_epsilon": [0.1, 0.2]}[field]

    def space(trial):
        return {field: trial.suggest_categorical(field, values)}

    with pytest.raises(ValueError, match=rf"the search varies {field}, which does not change") as error:
        searching(args, space, regularizer=rat())
    assert "\n" not in str(error.value)
    if kind is TrainingArguments:
        with pytest.raises(ValueError, match=rf"the search varies {field}, which TrainingArguments does not have"):
            searching(args, space)


def test_a_search_over_regularizers_gives_each_its_own_fields(tmp_path):
    """A field that one trial sets is not there in the next, whose regularizer has no use for it."""
    pairs = iter([{"reg": "fgm", "reg_epsilon": 0.3}, {"reg": "rdrop", "reg_alpha": 2.0}, {"reg": "fgm"}])
    seen = searching(runs.arguments(max_steps=1), lambda trial: next(pairs))
    assert seen == [repr(parse(text)) for text in ("fgm(epsilon=0.3)", "rdrop(alpha=2.0)", "fgm")]


def test_a_search_over_steps_and_shares_keeps_them_apart(tmp_path):
    """The Trainer would make 0.5 an int, as the value before it was one, and step 0 of it."""
    places = iter([0.5, 2, 0.25])
    seen = searching(
        runs.arguments(reg="rdrop", reg_begin=1, max_steps=4), lambda trial: {"reg_begin": next(places)}, 3
    )
    assert seen == [repr(rdrop(begin=begin)) for begin in (0.5, 2, 0.25)]


def test_other_fields_are_searched_beside_a_given_regularizer(tmp_path):
    rates = iter([1e-3, 1e-2])
    seen = searching(runs.arguments(max_steps=1), lambda trial: {"learning_rate": next(rates)}, 2, regularizer=rdrop())
    assert seen == [repr(rdrop())] * 2


# -- what is said before training -------------------------------------------------------------------------------------


def test_training_plainly_for_want_of_a_regularizer_is_told_once(tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        RegularizedTrainer(tiny.tiny_model(), bare(tmp_path), train_dataset=runs.examples(4))
    (text,) = [str(w.message) for w in told if "regularizer" in str(w.message)]
    assert "RegularizedTrainer got no regularizer and trains plainly" in text
    assert "\n" not in text
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        RegularizedTrainer(tiny.tiny_model(), bare(tmp_path), regularizer=plain())
        RegularizedTrainer(tiny.tiny_model(), runs.arguments())
    assert not [w for w in told if "regularizer" in str(w.message)]


SCRIPT = """
import logging, sys
import runs, tiny
from transformers import TrainingArguments
from hf_rat import RegularizedTrainer, fgm

def train(**settings):
    args = TrainingArguments(sys.argv[1], use_cpu=True, report_to="none", max_steps=1, save_strategy="no", **settings)
    data = {"train_dataset": runs.examples(4), "data_collator": runs.collate}
    RegularizedTrainer(tiny.tiny_model(), args, regularizer=fgm(), **data).train()
    print("--", file=sys.stderr, flush=True)

train()
logging.basicConfig()
train()
logging.getLogger("hf_rat").setLevel("ERROR")
train()
logging.getLogger("hf_rat").setLevel("NOTSET")
train(log_level="error")
"""


def test_the_price_is_seen_in_a_script(tmp_path):
    """As it is, with logging set up, with our logger switched off, with the Trainer's log level."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    printed = launches.fork(script, tmp_path)
    said = [[line for line in part.splitlines() if "forward and" in line] for part in printed.split("--\n")]
    assert [len(lines) for lines in said] == [1, 1, 0, 0, 0], printed
    for (line,) in said[:2]:
        assert "Regularizer fgm(" in line
        assert "2 forward and 2 backward passes per step (plain: 1 and 1)" in line


class FirstPass(nn.Module):
    """A user's own model, of whose kind of task only its loss can tell; it notes what had been told at each pass."""

    def __init__(self, told):
        super().__init__()
        self.table, self.head, self.told, self.at_pass = nn.Embedding(60, 8), nn.Linear(8, 1), told, []

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, labels=None, attention_mask=None):
        self.at_pass.append(self.told())
        logits = self.head(self.table(input_ids).mean(1))
        loss = nn.functional.binary_cross_entropy_with_logits(logits.squeeze(-1), labels.float())
        return {"loss": loss, "logits": logits}


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "hf_rat.trainer.announcement"]


def test_the_price_and_the_kind_of_task_are_told_before_the_first_pass(tmp_path, caplog):
    model = tiny.tiny_model(dropout=0.1)
    at_pass = []
    model.register_forward_pre_hook(lambda *_: at_pass.append(lines_of(caplog)))
    args = bare(tmp_path, save_strategy="no")
    one = RegularizedTrainer(
        model, args, regularizer=rat(), train_dataset=runs.examples(8), data_collator=runs.collate
    )
    with caplog.at_level("INFO", "hf_rat"):
        one.train()
    (line,) = at_pass[0]
    assert "Regularizer rat(" in line
    assert "kind of task: single_label_classification (one integer label for each example)" in line
    assert lines_of(caplog) == [line]


def test_a_kind_of_task_that_only_a_pass_can_tell_is_told_after_it(tmp_path, caplog):
    model = FirstPass(lambda: lines_of(caplog))
    rows = [{**row, "labels": row["labels"] % 2} for row in runs.examples(8)]
    args = bare(tmp_path, save_strategy="no")
    one = RegularizedTrainer(model, args, regularizer=rdrop(), train_dataset=rows, data_collator=runs.collate)
    with caplog.at_level("INFO", "hf_rat"):
        one.train()
    first, second = lines_of(caplog)
    assert "Regularizer rdrop(" in first
    assert "kind of task" not in first
    assert second.startswith("After the first batch; kind of task: multi_label_classification (the task loss is the")
    assert model.at_pass[0] == [first]

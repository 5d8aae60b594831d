"""The rows of the data sets against what GLUE publishes, typed here from its documentation."""

import pytest

from hf_rat.data.metrics import METRICS
from hf_rat.data.tasks import GLUE, find
from hf_rat.finetuning.preset import TABLE_7

# task: columns, number of labels (1: regression), label submitted for class 0, submission files and row counts
PUBLISHED = {
    "cola": (("sentence",), 2, "0", {"CoLA.tsv": 1063}),
    "sst2": (("sentence",), 2, "0", {"SST-2.tsv": 1821}),
    "mrpc": (("sentence1", "sentence2"), 2, "0", {"MRPC.tsv": 1725}),
    "stsb": (("sentence1", "sentence2"), 1, None, {"STS-B.tsv": 1379}),
    "qqp": (("question1", "question2"), 2, "0", {"QQP.tsv": 390965}),
    "mnli": (("premise", "hypothesis"), 3, "entailment", {"MNLI-m.tsv": 9796, "MNLI-mm.tsv": 9847}),
    "qnli": (("question", "sentence"), 2, "entailment", {"QNLI.tsv": 5463}),
    "rte": (("sentence1", "sentence2"), 2, "entailment", {"RTE.tsv": 3000}),
    "wnli": (("sentence1", "sentence2"), 2, "0", {"WNLI.tsv": 146}),
    "ax": (("premise", "hypothesis"), 3, "entailment", {"AX.tsv": 1104}),
}


def test_every_task_is_there_once():
    assert sorted(task.name for task in GLUE) == sorted(PUBLISHED)


@pytest.mark.parametrize("task", GLUE, ids=lambda task: task.name)
def test_rows_agree_with_what_is_published(task):
    columns, labels, _, files = PUBLISHED[task.name]
    assert task.text_columns == columns
    assert (len(task.labels) or 1) == labels
    assert task.regression == (labels == 1)
    assert {part.file: part.rows for part in task.test} == files
    assert all(name in METRICS for name in task.metrics)
    assert task.folder == f"glue/{task.name}"


def test_the_model_of_mnli_answers_ax_with_the_same_labels():
    assert find("mnli").also_predicts == "ax"
    assert find("ax").labels == find("mnli").labels
    assert [part.suffix for part in find("mnli").evaluation] == ["", "mm"]


def test_names_are_found_whatever_their_case():
    assert find("RTE").name == "rte"


def test_an_unknown_task_names_its_neighbours():
    with pytest.raises(ValueError, match=r"task_name 'mlni' is not known; did you mean mnli.*wnli, ax") as error:
        find("mlni")
    assert "\n" not in str(error.value)


def test_table_7_in_the_order_the_paper_prints_it():
    order = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    rows = [TABLE_7[name] for name in order]
    assert sorted(TABLE_7) == sorted(order)
    assert [row.alpha for row in rows] == [0.5, 0.5, 0.8, 0.5, 0.5, 0.8, 0.8, 0.5, 0.5]
    assert [row.epsilon for row in rows] == [0.1, 0.1, 0.15, 0.1, 0.1, 0.1, 0.15, 0.1, 0.15]
    assert [row.learning_rate for row in rows] == [2e-5, 1e-5, 1e-5, 1e-5, 2e-5, 2e-5, 1e-5, 2e-5, 1e-5]
    assert [row.batch_size for row in rows] == [24, 32, 32, 32, 32, 32, 32, 24, 16]
    assert {row.dropout for row in rows} == {0.1}

"""The GLUE submission: exact files, and a validator that finds each kind of mistake."""

import zipfile

import pytest

from hf_rat.cli.main import main as cli
from hf_rat.data.submission import missing_files, pack, problems, write_answers
from hf_rat.data.tasks import GLUE, find

NAMES = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("submission")
    for task in GLUE:
        for part in task.test:
            kinds = len(task.labels) or 7
            shift = 0.5 if task.regression else 0
            write_answers(folder, task, part, [index % kinds - shift for index in range(part.rows)])
    return folder


@pytest.fixture
def small(complete, tmp_path):
    """The complete set without its one large file, to damage."""
    for name in NAMES:
        if name != "QQP":
            (tmp_path / f"{name}.tsv").write_bytes((complete / f"{name}.tsv").read_bytes())
    return tmp_path


def test_a_complete_set_is_good_and_packed(complete):
    assert missing_files(complete) == []
    assert problems(complete) == []
    archive = pack(complete)
    assert archive == complete / "submission.zip"
    with zipfile.ZipFile(archive) as opened:
        assert sorted(opened.namelist()) == sorted(f"{name}.tsv" for name in NAMES)
    assert problems(archive) == []
    assert cli(["check-submission", str(archive)]) == 0


@pytest.mark.parametrize(
    ("task", "values", "lines"),
    [
        ("cola", [0, 1], ["0\t0", "1\t1"]),
        ("rte", [0, 1], ["0\tentailment", "1\tnot_entailment"]),
        ("qnli", [1, 0], ["0\tnot_entailment", "1\tentailment"]),
        ("wnli", [1, 0], ["0\t1", "1\t0"]),
        ("mnli", [0, 1, 2], ["0\tentailment", "1\tneutral", "2\tcontradiction"]),
        ("ax", [2], ["0\tcontradiction"]),
        ("stsb", [-0.3, 2.34567, 5.2], ["0\t0.000", "1\t2.346", "2\t5.000"]),
    ],
)
def test_what_is_written(tmp_path, task, values, lines):
    row = find(task)
    path = write_answers(tmp_path, row, row.test[0], values)
    assert path.read_text().splitlines() == ["index\tprediction", *lines]


def test_a_number_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="prediction 1 of stsb is nan"):
        write_answers(tmp_path, find("stsb"), find("stsb").test[0], [1.0, float("nan")])
    assert not list(tmp_path.iterdir())


def test_an_incomplete_set_is_not_packed(small):
    assert missing_files(small) == ["QQP.tsv"]
    assert problems(small) == ["QQP.tsv: missing"]
    assert pack(small) is None
    assert not (small / "submission.zip").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("RTE.tsv", lambda text: text.replace("index\t", "id\t", 1), "header"),
        (
            "RTE.tsv",
            lambda text: text.replace("2\tentailment", "7\tentailment", 1),
            "line 4 has index '7', it must",
        ),
        ("RTE.tsv", lambda text: text.replace("0\tentailment", "0\t0", 1), "line 2 predicts '0'"),
        ("WNLI.tsv", lambda text: text.replace("1\t1", "1\tentailment", 1), "line 3 predicts 'entailment'"),
        ("STS-B.tsv", lambda text: text.replace("0\t0.000", "0\t5.001", 1), "line 2 predicts '5.001'"),
        ("STS-B.tsv", lambda text: text.replace("0\t0.000", "0\tnan", 1), "line 2 predicts 'nan'"),
        ("AX.tsv", lambda text: text.rsplit("\n", 2)[0] + "\n", "1103 predictions, the leaderboard expects 1104"),
        ("AX.tsv", lambda text: text.replace("\t", ",", 2), "header"),
        ("AX.tsv", lambda text: text.replace("1\tneutral", "1\tneutral\tx", 1), "line 3 has 3 columns"),
        ("AX.tsv", lambda text: "", "header"),
    ],
)
def test_each_mistake_is_found(small, name, change, message, capsys):
    text = (small / name).read_text()
    changed = change(text)
    assert changed != text
    (small / name).write_text(changed)
    found = [problem for problem in problems(small) if problem.startswith(name)]
    assert len(found) == 1
    assert message in found[0]
    assert cli(["check-submission", str(small)]) == 2
    assert message in capsys.readouterr().err


def test_a_zip_with_a_folder_inside_is_refused(complete, tmp_path):
    path = tmp_path / "nested.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(complete / "RTE.tsv", "mine/RTE.tsv")
    assert "mine/RTE.tsv: not a file of the submission" in problems(path)
    assert "RTE.tsv: missing" in problems(path)


def test_neither_folder_nor_zip(tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        problems(tmp_path / "x")

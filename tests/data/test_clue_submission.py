"""The CLUE submission: one JSON object per test row, with the leaderboard's own codes, and its validator."""

import json
import zipfile

import pytest

from hf_rat.cli.main import main as cli
from hf_rat.data.submission import missing_files, pack, problems, write_answers
from hf_rat.data.tasks import CLUE, GLUE, find

# Typed here from CLUE's description of the news categories and from the Hub, which numbers them 0..14 in this order.
TNEWS = ["100", "101", "102", "103", "104", "106", "107", "108", "109", "110", "112", "113", "114", "115", "116"]


@pytest.fixture
def complete(tmp_path):
    for task in CLUE:
        (part,) = task.test
        write_answers(tmp_path, task, part, [index % len(task.labels) for index in range(part.rows)])
    return tmp_path


def test_the_rows_of_the_data_sets():
    tnews, iflytek = find("clue/tnews", CLUE), find("clue/iflytek", CLUE)
    assert tnews.labels == tuple(TNEWS)
    assert iflytek.labels == tuple(str(code) for code in range(119))
    assert [(task.test[0].file, task.test[0].rows) for task in (tnews, iflytek)] == [
        ("tnews11_predict.json", 10000),
        ("iflytek_predict.json", 2600),
    ]
    assert [task.folder for task in CLUE] == ["clue/tnews", "clue/iflytek"]


def test_what_is_written(tmp_path):
    tnews = find("clue/tnews", CLUE)
    path = write_answers(tmp_path, tnews, tnews.test[0], [0, 5, 14, 11])
    assert path == tmp_path / "tnews11_predict.json"
    assert path.read_bytes().decode().splitlines() == [
        '{"id": 0, "label": "100"}',
        '{"id": 1, "label": "106"}',
        '{"id": 2, "label": "116"}',
        '{"id": 3, "label": "113"}',
    ]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["label"] for row in rows] == [TNEWS[number] for number in (0, 5, 14, 11)]


def test_a_complete_set_is_good_and_packed(complete):
    assert missing_files(complete) == problems(complete) == []
    archive = pack(complete)
    with zipfile.ZipFile(archive) as opened:
        assert sorted(opened.namelist()) == ["iflytek_predict.json", "tnews11_predict.json"]
    assert problems(archive) == []
    assert cli(["check-submission", str(archive)]) == 0


def test_one_task_alone_is_a_submission(complete):
    (complete / "iflytek_predict.json").unlink()
    assert missing_files(complete) == problems(complete) == []
    with zipfile.ZipFile(pack(complete)) as opened:
        assert opened.namelist() == ["tnews11_predict.json"]


def test_an_empty_folder_is_not(tmp_path):
    assert problems(tmp_path)
    assert pack(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"id": 2,', '"id": 3,', 1), "line 3 has id 3, it must be 2"),
        (lambda text: text.replace('{"id": 1,', '{"idx": 1,', 1), "line 2 is not an object with id and label"),
        (lambda text: text.replace('"100"', '"105"', 1), "line 1 predicts '105'"),
        (lambda text: text.replace('"100"', "100", 1), "line 1 predicts 100"),
        (lambda text: text.replace('"100"', '"news_story"', 1), "line 1 predicts 'news_story'"),
        (lambda text: text.replace("}", "", 1), "line 1 is not JSON"),
        (lambda text: text.replace('{"id": 0, "label": "100"}', "[0, 100]", 1), "line 1 is not an object"),
        (lambda text: "\n" + text, "line 1 is not JSON"),
        (lambda text: text[: text.rindex("{")], "9999 predictions, the leaderboard expects 10000"),
        (lambda text: text + '{"id": 10000, "label": "100"}\n', "10001 predictions"),
        (lambda text: "", "0 predictions, the leaderboard expects 10000"),
    ],
)
def test_each_mistake_is_found(complete, change, message, capsys):
    path = complete / "tnews11_predict.json"
    text = path.read_text()
    changed = change(text)
    assert changed != text
    path.write_text(changed)
    (problem,) = problems(complete)
    assert problem.startswith("tnews11_predict.json: ")
    assert message in problem
    assert pack(complete) is None
    assert cli(["check-submission", str(complete)]) == 2
    assert message in capsys.readouterr().err


def test_bytes_that_are_not_text_are_found(complete):
    (complete / "iflytek_predict.json").write_bytes(b"\xff\xfe")
    assert "iflytek_predict.json: not UTF-8 text" in problems(complete)[0]


def test_the_two_leaderboards_do_not_mix(complete):
    task = find("rte")
    write_answers(complete, task, task.test[0], [0] * 3000)
    found = problems(complete)
    assert "tnews11_predict.json: a file of CLUE among those of GLUE" in found
    assert sum(problem.endswith(": missing") for problem in found) == sum(len(task.test) for task in GLUE) - 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    tnews = find("clue/tnews", CLUE)
    path = write_answers(tmp_path, tnews, tnews.test[0], [1])
    before = path.read_text()

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_answers(tmp_path, tnews, tnews.test[0], [2, 3])
    assert path.read_text() == before

"""SFTTrainer and SentenceTransformerTrainer in two processes: the step of one process on the same examples."""

import json

import launches
import pytest

pytest.importorskip("trl")
pytest.importorskip("sentence_transformers")

import trainer_processes
from test_hosts_sentence_transformers import save_tiny_bert


@pytest.mark.slow
def test_two_processes_make_the_step_of_one(tmp_path):
    save_tiny_bert(tmp_path)
    result = tmp_path / "two.json"
    launches.fork(launches.HERE / "trainer_processes.py", result, tmp_path, processes=2)
    one, two = trainer_processes.steps(tmp_path, processes=1), json.loads(result.read_text(encoding="utf-8"))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        assert two[name].keys() == expected.keys()
        for key in expected.keys() - {"epoch"}:
            assert two[name][key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), f"{name}: {key}"

"""CONTRIBUTING.md's promise: what is added in so few files works from the command line, and the tests find it."""

import json
import re
import shutil
from pathlib import Path

import additions
import launches
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project with every addition made."""
    root = tmp_path_factory.mktemp("copy")
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("hf_rat", "tests", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=skip)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root)
    for files in additions.ADDITIONS.values():
        additions.add(root, files)
    return root


def run(copy, *command):
    return launches.fork(*command, folder=copy, PYTHONPATH=str(copy))


def test_the_command_line_finds_what_was_added(copy, tmp_path):
    rows = [{"text": f"a {word} film", "label": word} for word in ("good", "bad", "good", "bad") * 4]
    data, out = tmp_path / "train.json", tmp_path / "out"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    method = "wobble(epsilon=2, divergence='hellinger') + fgm(epsilon=1, site='first_dropout')"
    flags = ["--model", "bag", "--embedding_size", "8", "--reg", method, "--do_train", "--max_steps", "3"]
    where = [
        "--train_file",
        str(data),
        "--output_dir",
        str(out),
        "--use_cpu",
        "--min_count",
        "1",
        "--logging_steps",
        "1",
    ]
    run(copy, "hf_rat.cli.main", "textcls", *flags, *where, "--no_price")
    assert json.loads((out / "config.json").read_text())["model_type"] == "hf_rat_bag"
    logs = json.loads((out / "trainer_state.json").read_text())["log_history"]
    steps = [log for log in logs if "loss" in log]
    assert len(steps) == 3
    assert all(log["loss_smoothness"] > 0 and log["loss_adversarial_task"] > log["loss_task"] / 2 for log in steps)


def test_the_tests_find_what_was_added(copy):
    named = ["tests/regularizers/test_recipes.py", "tests/regularizers/test_divergences.py"]
    own = [name for files in additions.ADDITIONS.values() for name in files if name.startswith("tests/")]
    found = run(
        copy, "pytest", "-q", "-p", "no:cacheprovider", *dict.fromkeys([*named, *own]),
        "-k", "wobble or hellinger or first_dropout or bag or has_its_formula or all_names",
    )  # fmt: skip
    passed = int(re.search(r"(\d+) passed", found)[1])
    assert passed > 20, found


@pytest.mark.parametrize("what", additions.ADDITIONS)
def test_contributing_says_how_many_files(what):
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"| a {what} | {additions.count(additions.ADDITIONS[what])} |" in page

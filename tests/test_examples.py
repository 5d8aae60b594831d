"""The examples run as they stand, with a few steps each, and say what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "trainer": (("--max_steps", "2"), ("loss_adversarial_consistency", "eval_accuracy", "-> {'label'")),
    "own_loop": (("--max_steps", "2"), ("step 2: task", "adversarial_consistency", "accuracy")),
    "sft_lora": (("--max_steps", "2"), ("trainable params", "train_loss", "please the opposite of hot is")),
    "hyperparameter_search": (("--max_steps", "2", "--trials", "2"), ("best of 2 trials", "reg_epsilon", "test acc")),
    "companion_model": (("--max_steps", "2"), ("saved: config.json", "modeling_textcnn.py", "Classification says:")),
}
"""Name -> its flags, and what it must print."""


def test_every_example_is_run():
    assert set(SCRIPTS) == {path.stem for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_example_runs(name, tmp_path):
    if name == "sft_lora":
        pytest.importorskip("trl")
    flags, said = SCRIPTS[name]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *flags],
        cwd=tmp_path,
        env={**os.environ, **offline, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for part in said:
        assert part in done.stdout, f"{part!r} is not in:\n{done.stdout[-2000:]}"
    for warning in ("no dropout", "evaluation mode", "Do you wish to run"):
        assert warning not in done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"hf"}, "an example leaves files where it is run"

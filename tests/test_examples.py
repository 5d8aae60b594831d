"""The examples run as they stand, with a few steps each, and say what they promise."""

from pathlib import Path

import launches
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
    settings = {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    printed = launches.fork(ROOT / "examples" / f"{name}.py", *flags, folder=tmp_path, **settings)
    for part in said:
        assert part in printed, f"{part!r} is not in:\n{printed[-2000:]}"
    for warning in ("no dropout", "evaluation mode", "Do you wish to run"):
        assert warning not in printed
    assert not list(tmp_path.iterdir()), "an example leaves files where it is run"

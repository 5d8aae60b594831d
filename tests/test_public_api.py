"""What `import hf_rat` gives: every name that the docs use, found at its first use, seen by type checkers."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import launches
import pytest

import hf_rat
from hf_rat.regularizers.recipe import RECIPES

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "accelerate")


def fresh(code):
    """What a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_names_that_the_docs_use_are_exported():
    promised = {"Term", "Point", "RegularizedTrainer", "RegularizationMixin", "Regularization", "__version__"}
    promised |= {"RegularizedTrainingArguments", "DropoutSchedule", "AveragedWeights", "parse", "models", *RECIPES}
    assert set(hf_rat.__all__) == promised
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for names in re.findall(r"^from hf_rat import \(?([\w, ]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert {name.strip() for name in names.split(",") if name.strip()} <= promised, page


def test_names_are_found_at_their_first_use_only():
    printed = fresh(
        "import sys, hf_rat\n"
        f"print([name for name in {HEAVY} if name in sys.modules], hf_rat.__version__)\n"
        "print(hf_rat.rat(epsilon=0.5), 'torch' in sys.modules)\n"
        "from transformers import AutoConfig\n"
        "print(type(AutoConfig.for_model('hf_rat_rnn')).__name__)"
    )
    assert printed.splitlines()[0] == f"[] {hf_rat.__version__}"
    assert printed.splitlines()[1].startswith("rat(epsilon=0.5")
    assert printed.splitlines()[1].endswith("True")
    assert printed.splitlines()[2] == "RNNConfig", "any use lets the Auto classes find the companion models"


def test_a_star_import_dir_and_help_know_every_name(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from hf_rat import *\nimport hf_rat, pydoc\n"
        "assert all(name in globals() and name in dir(hf_rat) for name in hf_rat.__all__)\n"
        "print(pydoc.render_doc(rat, renderer=pydoc.plaintext))"
    )
    printed = launches.fork(script)
    assert "epsilon" in printed
    assert RECIPES["rat"].__doc__.splitlines()[0] in printed


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hf_rat' has no attribute 'raat'"):
        _ = hf_rat.raat
    with pytest.raises(ImportError, match="raat"):
        exec("from hf_rat import raat")


def test_what_is_exported_can_be_pickled():
    for name in hf_rat.__all__:
        if name not in ("models", "__version__"):
            assert pickle.loads(pickle.dumps(getattr(hf_rat, name))) is getattr(hf_rat, name)
    one = hf_rat.rat(epsilon=0.5)
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    "first",
    [
        "import hf_rat.models\nfrom transformers import AutoConfig",
        "from transformers import AutoConfig\nimport hf_rat",
        "from hf_rat.finetuning import pretrained\nfrom transformers import AutoConfig",
    ],
)
def test_the_auto_classes_find_the_companion_models(first):
    assert fresh(f"{first}\nprint(type(AutoConfig.for_model('hf_rat_rnn')).__name__)").strip() == "RNNConfig"


def test_the_layers_are_exported():
    from torch import nn

    from hf_rat.models import GRU, LSTM, RNN

    for ours, theirs in ((RNN, nn.RNN), (LSTM, nn.LSTM), (GRU, nn.GRU)):
        assert issubclass(ours, theirs)


SCRIPT = """
from collections.abc import Iterator
from typing import Any

import hf_rat
from hf_rat import DropoutSchedule, Point, RegularizedTrainer, Term, parse, rat, rdrop
from hf_rat.models import LSTM

term: Term = rdrop() + 0.5 * rat(epsilon=0.5)
other: Term = parse("vat")
version: str = hf_rat.__version__


def train(model: Any, args: hf_rat.RegularizedTrainingArguments) -> None:
    trainer = RegularizedTrainer(model=model, args=args, callbacks=[DropoutSchedule("curriculum")])
    trainer.train()


reveal_type(hf_rat.vat(epsilon=1.0))
hf_rat.raat
rat(epsilom=0.5)
rat(epsilon="a")
parse(1)
"""


def test_a_type_checker_sees_the_names_of_a_user_s_script(tmp_path):
    """Strict; what torch and Transformers are is no matter here, and reading them takes a minute."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    config = tmp_path / "mypy.ini"
    config.write_text(
        f"[mypy]\nstrict = True\nmypy_path = {ROOT}\ncache_dir = {tmp_path}\n"
        "[mypy-hf_rat.*]\nfollow_imports = silent\n"
        + "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in (*HEAVY, "trl", "sentence_transformers"))
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), str(script)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    lines = SCRIPT.splitlines()
    found: dict[str, str] = {}
    for line in said:
        if line.startswith(str(script)):
            found.setdefault(lines[int(line.split(":")[1]) - 1], line)
    assert list(found) == lines[-5:], "\n".join(said)
    assert "Recipe" in found[lines[-5]]
    assert 'has no attribute "raat"' in found[lines[-4]]
    assert "epsilom" in found[lines[-3]]
    assert "incompatible type" in found[lines[-2]]
    assert "incompatible type" in found[lines[-1]]

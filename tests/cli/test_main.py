"""`hf-rat`: what is answered before anything heavy is imported, and how a command is found."""

import dataclasses
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from tqdm import tqdm

import hf_rat
from hf_rat import parse
from hf_rat.cli import _commands, _source, main
from hf_rat.finetuning.blame import reported
from hf_rat.finetuning.file_flags import FileArguments
from hf_rat.finetuning.flags import DataTrainingArguments, ModelArguments, given_flags
from hf_rat.finetuning.language_model_flags import LanguageModelArguments
from hf_rat.finetuning.tag_flags import TagArguments
from hf_rat.finetuning.word_model_flags import WordModelArguments
from hf_rat.regularizers.recipe import RECIPES
from hf_rat.trainer.training_args import RegularizedTrainingArguments

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy")
DATACLASSES = [
    ModelArguments,
    FileArguments,
    DataTrainingArguments,
    RegularizedTrainingArguments,
    WordModelArguments,
]


def test_help_and_what_is_misspelt_import_nothing_heavy():
    """Whatever answers here is quick: what takes seconds is the import of these."""
    lines = {
        "": 0,
        "--help": 0,
        "--version": 0,
        "methods": 0,
        "methods rat": 0,
        "methods raat": 2,
        "gleu": 2,
        "glue --help": 0,
        "glue --help-all": 0,
        "textcls --model lstm -h": 0,
        "compare --help": 0,
        "check-submission --help": 0,
        "submit --help": 0,
        "analyze --help": 0,
        "analyze robustness --help": 0,
        "analyze calibration --help": 0,
        "analyze gap --help": 0,
        "analyze robusness run --output_dir out": 2,
        "submit superglue run --output_dir out": 2,
        "glue --leraning_rate 1": 2,
        "glue --task_name rte --reg raat": 2,
        "textcls --reg=rdrop+0.5*vatt": 2,
        "compare --methods raat --seeds 1 --output_dir out": 2,
        "compare --methods rat --seeds 1 --output_dir out -- glue --taskname rte": 2,
    }
    code = (
        "import sys\nfrom hf_rat.cli.main import main\n"
        f"for line, status in {lines}.items():\n"
        "    try: found = main(line.split())\n"
        "    except SystemExit as end: found = end.code\n"
        f"    assert found == status, (line, found)\n"
        f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "    assert not heavy, (line, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_command_with_a_line(capsys):
    assert main.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    modules = {path.stem for path in (ROOT / "hf_rat" / "cli").glob("[a-z]*.py")} - {"main"}
    assert {line.split()[0] for line in lines[2:]} == {name.replace("_", "-") for name in modules}
    assert all(len(line.split()) > 3 for line in lines[2:])


def test_version(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hf-rat {hf_rat.__version__}\n"


def test_a_command_is_its_module(tmp_path):
    """To add one touches nothing else: a file in the folder is listed, suggested and run."""
    shutil.copytree(ROOT / "hf_rat", tmp_path / "hf_rat", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "hf_rat" / "cli" / "say_hello.py").write_text(
        '"""Greet somebody."""\n\n\ndef main(argv):\n    print("hello", *argv)\n    return 7\n'
    )

    def run(*words):
        command = [sys.executable, "-m", "hf_rat.cli.main", *words]
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
        return done.returncode, done.stdout + done.stderr

    status, said = run()
    assert (status, [line.split(maxsplit=1)[1] for line in said.splitlines() if "say-hello" in line]) == (
        0,
        ["Greet somebody."],
    )
    status, said = run("say-hallo")
    assert status == 2
    assert "did you mean say-hello?" in said
    assert run("say-hello", "you") == (7, "hello you\n")


@pytest.mark.parametrize("dataclass_", DATACLASSES, ids=lambda dataclass_: dataclass_.__name__)
def test_the_flags_that_are_read_as_text_are_the_real_ones(dataclass_):
    real = {field.name: field for field in dataclasses.fields(dataclass_) if field.init}
    read = _source.read(dataclass_.__module__).flags(dataclass_.__name__)
    assert list(read) == list(real)
    types = get_type_hints(dataclass_)  # HfArgumentParser changes those of the fields
    for name, flag in read.items():
        assert flag.help == real[name].metadata.get("help", ""), name
        if flag.default is not None:
            assert flag.default == real[name].default, name
        assert (flag.kind == "bool") == (types[name] is bool), name


def test_the_recipes_that_are_read_as_text_are_the_real_ones():
    assert list(_source.cards()) == list(RECIPES)
    for name, card in _source.cards().items():
        parameters = inspect.signature(RECIPES[name]).parameters.values()
        assert card.arguments == {parameter.name: parameter.default for parameter in parameters}
        assert card.text == inspect.getdoc(RECIPES[name])


@pytest.mark.parametrize("name", ["glue", "lm", "ner", "textcls", "compare"])
def test_the_short_help_fits_a_screen_or_two(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    if name == "compare":
        with pytest.raises(SystemExit):
            main.main([name, "--help"])
    else:
        assert main.main([name, "--help"]) == 0
    page = capsys.readouterr().out
    lines = page.splitlines()
    assert len(lines) <= 95
    assert max(map(len, lines)) <= 80
    for recipe in RECIPES:
        assert sum(line.split()[:1] == [recipe] for line in lines) == 1
    if name != "compare":
        titles = [line.rstrip(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
        assert titles == ["regularizer", "model", "data", "training", "output"]
        assert "[5e-05]" in page if name == "glue" else "[5e-05]" not in page


def test_fields_that_are_inherited_from_other_modules_are_found(tmp_path, monkeypatch):
    """As a later Transformers may divide its arguments: relative imports, a mixin, a plain class, no `field`."""
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "__init__.py").write_text("from .all import All\n")
    (package / "mixin.py").write_text(
        "from abc import ABC\nUNIT = 'steps'\n\nclass Mixin(ABC):\n    wait: int = 3\n    kinds: ClassVar = 1\n"
    )
    (package / "all.py").write_text(
        "from .mixin import UNIT, Mixin as Other\n\nclass All(Other, object):\n"
        "    speed: float = field(default=made(), metadata={'help': f'In {UNIT}.'})\n"
        "    _n: int = field(init=False, default=-1)\n    wait: int = field(default=5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = _source.Source("elsewhere").flags("All")
    assert [(flag.name, flag.default, flag.help) for flag in flags.values()] == [
        ("wait", 5, ""),
        ("speed", None, "In steps."),
    ]
    assert "elsewhere" not in sys.modules


@pytest.mark.parametrize("name", ["glue", "lm", "ner", "textcls"])
def test_all_help_has_every_flag_once(name, capsys):
    assert main.main([name, "--help-all"]) == 0
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    more = {"glue": [], "textcls": [], "ner": [TagArguments], "lm": [LanguageModelArguments]}
    used = [*DATACLASSES[:4], *([] if name == "glue" else [WordModelArguments]), *more[name]]
    assert len(words) == len(set(words))
    assert set(words) == {f"--{field.name}" for d in used for field in dataclasses.fields(d) if field.init}


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--reg",
        "--learning_rate 1e-3 --do_train",
        "--learning-rate=1e-3",
        "--learning_ra 1e-3",
        "--no_lowercase --no-lowercase",
        "--reg rat+0.5*vat",
        "--reg=rat(epsilon=0.5) --learning_rate -1",
        "--label_names a b",
    ],
)
def test_what_the_real_parser_takes_is_not_refused(words):
    if words != "--reg":  # a value is missing, which the real parser says
        given_flags(words.split(), "hf-rat textcls", (WordModelArguments,))
    _commands.commands()["textcls"].check(words.split())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--leraning_rate 1", ["'--leraning_rate'", "--learning_rate"]),
        ("--leraning-rate=1", ["'--leraning-rate=1'", "--learning_rate"]),
        ("--do_train --no_do_train", ["'--no_do_train'"]),
    ],
)
def test_both_refuse_a_misspelt_flag_in_the_same_words(words, parts):
    said = []
    for refuse in (_commands.commands()["glue"].check, lambda argv: given_flags(argv, "hf-rat glue")):
        with pytest.raises(ValueError, match="is not a flag of hf-rat glue") as caught:
            refuse(words.split())
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert all(part in said[0] for part in parts)


@pytest.mark.parametrize("expression", ["raat", "rat + 0.5 * vatt", "2 * (rdrop + fgmm)", "something_else"])
def test_an_unknown_method_is_refused_as_by_the_parser_of_expressions(expression):
    with pytest.raises(ValueError, match="unknown regularizer") as quick:
        _commands.require_methods(expression, "--reg")
    with pytest.raises(ValueError, match="unknown regularizer") as real:
        hf_rat.parse(expression)
    ours, theirs = (str(error.value).partition("unknown regularizer")[2] for error in (quick, real))
    assert ours == theirs


@pytest.mark.parametrize("expression", [*RECIPES, "rat(epsilon=0.5) + 0.5 * vat", "", "rat{", "rat(dropouts=(x,))"])
def test_what_is_no_unknown_method_is_left_to_the_parser_of_expressions(expression):
    _commands.require_methods(expression, "--reg")


def test_a_card(capsys):
    assert main.main(["methods", "rat"]) == 0
    card = capsys.readouterr().out
    assert card.startswith("rat(epsilon=")
    assert "Reference: Ni, Li, Kao 2022" in card
    assert main.main(["methods", "raat"]) == 2
    assert "did you mean rat" in capsys.readouterr().err


def test_compare_refuses_before_any_run(capsys):
    line = "compare --seeds 1 --output_dir never --methods"
    for words, message in (
        ("raat", "--methods names an unknown regularizer 'raat'"),
        ("rat -- glue --taskname rte", "'--taskname' is not a flag of hf-rat glue"),
        ("rat -- methods", " or textcls, it was given 'methods'"),
    ):
        assert main.main([*line.split(), *words.split()]) == 2
        assert message in capsys.readouterr().err
    assert not Path("never").exists()


def test_an_error_stands_on_a_line_of_its_own_behind_a_progress_bar(capsys):
    def main(words):
        bar = tqdm(total=3)
        parse(words[0])
        bar.close()

    assert reported(main, ["fgmm"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")

"""A comparison as a file: what it asks for, what flags change of it, and one line for what is wrong."""

import re
from pathlib import Path

import pytest

from hf_rat.cli.compare import main, parse
from hf_rat.experiments import processes
from hf_rat.experiments.experiment_file import read_experiment
from hf_rat.experiments.words import value_of, without, words_of

CONFIGS = Path(__file__).parents[2] / "configs" / "experiments"
WHOLE = """
command: textcls
flags: {do_train: true, save_strategy: no, lowercase: false, weight_decay: 0.01, lr_scheduler_kwargs: {power: 2}}
methods:
  - plain
  - rat(epsilon=0.3, begin=60): {learning_rate: 2e-5, label_names: [labels, more]}
models: [textcnn, bilstm: {hidden_size: 64}, some/model]
datasets:
  - ag_news
  - imdb --max_seq_length 400
seeds: 2
jobs: 3
score: accuracy
baseline: plain
output_dir: out/news
"""


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "experiment.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "experiment.yaml")

    return write


def test_a_whole_file(file):
    asked = parse([file(WHOLE)])
    assert asked.base == (
        *("textcls", "--do_train", "True", "--save_strategy", "no", "--lowercase", "False", "--weight_decay", "0.01"),
        *("--lr_scheduler_kwargs", '{"power": 2}'),
    )
    assert [method.expression for method in asked.methods] == ["plain", "rat(epsilon=0.3, begin=60)"]
    assert asked.methods[1].flags == ["--learning_rate", "2e-5", "--label_names", "labels", "more"]
    assert (asked.seeds, asked.jobs, asked.score, asked.baseline) == ((1, 2), 3, "accuracy", "plain")
    assert [cell.flags for cell in asked.cells] == [
        ("--dataset_name", "ag_news", "--model", "textcnn"),
        ("--dataset_name", "ag_news", "--model", "bilstm", "--hidden_size", "64"),
        ("--dataset_name", "ag_news", "--model_name_or_path", "some/model"),
        ("--dataset_name", "imdb", "--max_seq_length", "400", "--model", "textcnn"),
        ("--dataset_name", "imdb", "--max_seq_length", "400", "--model", "bilstm", "--hidden_size", "64"),
        ("--dataset_name", "imdb", "--max_seq_length", "400", "--model_name_or_path", "some/model"),
    ]


def test_the_plan_goes_seed_by_seed_and_each_run_has_a_folder(file):
    runs = parse([file(WHOLE)]).plan()
    assert len(runs) == len({run.folder for run in runs}) == 2 * 3 * 2 * 2
    assert [run.seed for run in runs] == [1] * 12 + [2] * 12
    first = runs[3]
    assert first.folder == Path(
        "out/news/ag-news/bilstm-hidden-size-64/rat-epsilon-0.3-begin-60-learning-rate-2e-5-label-names-labels-more/seed-1"
    )
    assert (first.dataset, first.model) == ("ag_news", "bilstm --hidden_size 64")
    assert first.command[-6:-2] == ("--reg", "rat(epsilon=0.3, begin=60)", "--seed", "1")


def test_cells_have_models_data_and_commands_of_their_own(file):
    cells = """
cells:
  news, textcnn: {dataset_name: ag_news, model: textcnn}
  rte: {command: glue, task_name: rte, model_name_or_path: some/model}
"""
    asked = parse([file(re.sub("(?s)lowercase: false, |(models|datasets).*?(?=seeds)", "", WHOLE) + cells)])
    assert asked.commands == ["textcls", "glue"]
    runs = {run.dataset: run for run in asked.plan() if run.seed == 1 and run.method.entry == "plain"}
    assert runs.keys() == {"news, textcnn", "rte"}
    assert runs["rte"].folder == Path("out/news/rte/plain/seed-1")
    assert runs["rte"].command[0] == "glue"
    assert runs["news, textcnn"].command[0] == "textcls"
    for run, flags in [(runs["rte"], ["task_name", "rte"]), (runs["news, textcnn"], ["model", "textcnn"])]:
        assert value_of(run.command, flags[0]) == flags[1]
        assert value_of(run.command, "weight_decay") == "0.01"


def test_a_cell_may_vary_another(file):
    cells = "cells: {a: &a {task_name: rte, train_size: 1000}, b: {<<: *a, train_size: 250}}"
    asked = parse([file(f"methods: plain\nseeds: 1\noutput_dir: o\n{cells}")])
    assert [dict(zip(cell.flags[::2], cell.flags[1::2], strict=True)) for cell in asked.cells] == [
        {"--task_name": "rte", "--train_size": "1000"},
        {"--task_name": "rte", "--train_size": "250"},
    ]


def test_flags_win_over_the_file(file):
    line = [file(WHOLE), "--seeds", "7", "--methods", "rdrop", "--baseline", "rdrop", "--", "--weight_decay", "0.5"]
    asked = parse(line)
    assert (asked.seeds, [method.entry for method in asked.methods]) == ((7,), ["rdrop"])
    assert value_of(asked.base, "weight_decay") == "0.5"
    assert value_of(asked.base, "save_strategy") == "no"
    assert asked.jobs == 3


def test_data_sets_of_glue_are_tasks(file):
    text = "methods: plain\ndatasets: [rte, cola]\nmodels: [textcnn]\nseeds: [0]\noutput_dir: o"
    first, second = parse([file(text)]).cells
    assert first.flags == ("--task_name", "rte", "--model_name_or_path", "textcnn")
    assert second.dataset == "cola"
    assert parse([file(text)]).base == ("glue",)


def test_without_axes_the_folders_are_those_of_before():
    (run,) = parse(["--methods", "rat", "--seeds", "3", "--output_dir", "out"]).plan()
    assert run.folder == Path("out/rat/seed-3")
    assert (run.dataset, run.model) == (None, None)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_the_files_that_come_along(path):
    assert len(parse([str(path)]).plan()) >= 5


def test_a_tracker_gets_names(file):
    line = ["--methods", "plain", "rat", "--seeds", "3", "--output_dir", "o", "--datasets", "rte", "--", "glue"]
    named = [value_of(run.command, "run_name") for run in parse([*line, "--report_to", "tensorboard"]).plan()]
    assert named == ["rte plain seed-3", "rte rat seed-3"]
    assert value_of(parse([*line, "--report_to", "none"]).plan()[0].command, "run_name") is None
    own = parse([*line, "--report_to", "wandb", "--run_name", "mine"]).plan()[0].command
    assert [word for word in own if word == "--run_name"] == ["--run_name"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [plain]", "'method' is not a key; did you mean methods?"),
        ("banana: 1", "'banana' is not a key; there are command, flags, methods"),
        ("- plain", "holds a list ['plain'], it must hold key: value"),
        ("", "holds nothing"),
        ("methods: [plain", "cannot be read"),
        ("seeds: 1\nseeds: 2", "'seeds' stands twice"),
        ("methods: 3", "methods: 3 was given, a list is needed"),
        ("methods: []", "methods: a list [] was given"),
        ("methods: [3]", "methods: 3 was given, a text is needed"),
        ("methods: [{rat: {a: 1}, fgm: {}}]", "a name with its flags is needed"),
        ("methods: [rat: 3]", "methods: 3 was given, flags are needed"),
        ("flags: [fp16]", "flags: a list ['fp16'] was given, flags are needed"),
        ("flags: {fp16: }", "flags: fp16 has no value"),
        ("seeds: x", "seeds: the text 'x' was given"),
        ("seeds: 0", "seeds: 0 was given, a whole number of at least 1"),
        ("seeds: [1, -2]", "seeds: [1, -2] was given, whole numbers of at least 0"),
        ("seeds: true", "seeds: the truth value True was given"),
        ("jobs: 0", "jobs: 0 was given"),
        ("controls: 1", "controls: 1 was given, true or false is needed"),
        ("output_dir: 3", "output_dir: 3 was given, a text is needed"),
        ("cells: [rte]", "cells: a list ['rte'] was given, names with flags are needed"),
        ("cells: {rte: 3}", "cells: rte: 3 was given, flags are needed"),
        ("cells: {rte: {command: 3}}", "cells: 3 was given, a text is needed"),
    ],
)
def test_bad_files_are_one_line(file, text, message, capsys, monkeypatch):
    monkeypatch.setattr(processes.Processes, "__call__", lambda *_: pytest.fail("nothing may run"))
    path = file(text)
    assert main([path]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("flags: {learnin_rate: 1}", "'--learnin_rate' is not a flag of hf-rat glue; did you mean --learning_rate"),
        ("flags: {seed: 1}", "--seed is set by compare"),
        ("flags: {output-dir: x}", "--output-dir is set by compare"),
        ("command: verdict", " or textcls, it was given 'verdict'"),
        ("command: gleu", "it was given 'gleu'"),
        ("baseline: plane", "--baseline 'plane' is none of --methods; did you mean 'plain'?"),
        ("datasets: [rte, rte]", "--datasets: 'rte' and another one would share the folder 'rte'"),
        ("models: [a/b: {output_dir: x}]", "--output_dir is set by compare"),
        ("cells: {rte: {command: gleu}}", " or textcls, it was given 'gleu'"),
        ("cells: {rte: {hidden_size: 3}}", "'--hidden_size' is not a flag of hf-rat glue"),
        ("cells: {rte: {seed: 1}}", "--seed is set by compare"),
        ("cells: {a b: {}, a-b: {}}", "cells: 'a b' has the folder of another"),
        ("cells: {rte: {}}\nmodels: [m]", "models and cells were given: cells name both, keep one of them"),
        (
            "flags: {hidden_size: 3}\ncells: {a: {}, b: {command: textcls}}",
            "'--hidden_size' is not a flag of hf-rat glue",
        ),
        ("datasets: [rte]\nflags: {task_name: cola}", "--task_name cola and --datasets 'rte': keep one of them"),
    ],
)
def test_what_the_command_cannot_have(file, more, message):
    path = file(f"methods: [plain, rat]\nseeds: 2\noutput_dir: o\n{more}")
    with pytest.raises(ValueError, match=r".*") as caught:
        parse([path])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(file):
    with pytest.raises(ValueError, match="--seeds is missing: give it, or seeds: in a file"):
        parse([file("methods: plain\noutput_dir: o")])
    with pytest.raises(ValueError, match=r"cannot be read .*No such file"):
        read_experiment(Path("nowhere.yaml"))
    with pytest.raises(ValueError, match="-- textcls: the file's command is glue"):
        parse([file("command: glue\nmethods: plain\nseeds: 1\noutput_dir: o"), "--", "textcls"])


def test_words():
    assert value_of(["--a", "1", "--a=2", "--b"], "a") == "2"
    assert value_of(["--a-b", "1"], "a_b") == "1"
    assert value_of(["--b"], "b") == "True"
    assert value_of(["--b", "--a", "x"], "c") is None
    assert without(["x", "--a", "1", "2", "--b=3", "--c", "4"], ["a", "b"]) == ["x", "--c", "4"]
    assert words_of({"a": [1, 2], "b": False}) == ["--a", "1", "2", "--b", "False"]

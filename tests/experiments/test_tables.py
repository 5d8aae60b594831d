"""What is told of a comparison reads back as the numbers that it was made of, whatever the methods are called."""

import csv
import io
import json
import re
import shlex
import struct
import subprocess
import unicodedata

import pytest
from made_runs import accuracies, made

from hf_rat.experiments.command_lines import shortened
from hf_rat.experiments.exports import as_csv, as_latex, escaped, everything
from hf_rat.experiments.pictures import picture_of_cost, picture_of_seeds
from hf_rat.experiments.records import read
from hf_rat.experiments.tables import markdown, wrapped
from hf_rat.experiments.telling import tell
from hf_rat.experiments.verdict import judge

LONG = "rat(epsilon=0.1, alpha=2) + 0.1 * vat(epsilon=1.5) --learning_rate 2e-5 --run_name " + "x" * 200
ODD = ["a|b", "50 % & more_or_less #1 {x} ~ ^ \\ $x$", "正则化(épsilon=1)", "`ticks` in it", LONG]


@pytest.fixture
def odd(tmp_path):
    """Eight methods with odd names, five seeds, one of them failed."""
    names = ["plain", *ODD, "fgm", "A"]
    for at, name in enumerate(names):
        values = [0.7 + 0.01 * at + 0.003 * ((seed * (at + 3)) % 7) for seed in range(5)]
        results = accuracies(*values, seconds=[10 * (at + 1) + seed for seed in range(5)])
        made(tmp_path / f"m{at}", name, results | ({3: None} if at == 2 else {}))
    order = {"command": "hf-rat compare ...", "methods": [{"method": name} for name in names]}
    (tmp_path / "results.json").write_text(json.dumps(order))
    return tmp_path, names


def drawn(text):
    """The tables of a Markdown text: lists of rows, which are lists of cells."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    return [
        [[c.strip() for c in line.strip("|").split("|")] for line in one.splitlines() if "---" not in line]
        for one in found
    ]


def wide(text):
    """Columns of a terminal, by the Unicode tables alone."""
    return max(sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line) for line in text.splitlines())


def test_tables_and_terminal_fit_80_columns(odd):
    folder, names = odd
    text = markdown(judge(read([folder])))
    tables = drawn(text)
    assert len(tables) == 4
    assert all(wide("\n".join(line for line in text.splitlines() if line.startswith("|"))) <= 80 for _ in tables)
    assert wide(wrapped(text)) <= 80
    assert all(len({len(row) for row in table}) == 1 for table in tables), "a | in a name makes no cell"
    assert [len(table) - 1 for table in tables] == [len(names), len(names) - 1, len(names) - 1, len(names)]
    legend = dict(re.findall(r"^- ([A-Z]) is (.*)$", text, re.MULTILINE))
    assert len(legend) == 3
    assert LONG in legend.values() or f"`{LONG}`" in legend.values()
    assert "`a|b`" in legend.values()
    cells = {row[0] for row in tables[0][1:]}
    assert cells >= {"`plain`", "`fgm`", "`A`", "`` `ticks` in it ``", *legend}


def test_large_numbers_fit_too(tmp_path):
    for name, base in (("plain", 123456.0), ("a method of medium length", 654321.0)):
        made(tmp_path / name[:3], name, {s: {"eval_loss": base + 1000 * s * s} for s in range(3)})
    text = markdown(judge(read([tmp_path])))
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 80


def test_the_numbers_of_the_tables(tmp_path):
    made(tmp_path / "plain", "plain", accuracies(0.70, 0.72, 0.74, seconds=(10, 20, 10)))
    made(tmp_path / "rat", "rat", accuracies(0.73, 0.74, 0.78, seconds=(20, 60, 20)))
    text = markdown(judge(read([tmp_path])))
    scores, gains, tests, all_scores = drawn(text)
    assert scores[1:] == [
        ["`plain`", "3", "72.00", "2.00", "10", "1.00x"],
        ["`rat`", "3", "75.00", "2.65", "20", "2.00x"],
    ]
    assert gains[1:] == [["`rat`", "+3.00", "+0.52 to +5.48", "3 of 3"]]
    assert tests[1][:3] == ["`rat`", "0.25", "0.25"]
    assert all_scores[1] == ["`plain`", "0.7200 ± 0.0200", "0.2800 ± 0.0200"]
    assert "With 3 pairs p cannot reach .05: its smallest is 0.25." in text
    assert "for this very test set (Student's t" in text


def test_one_seed_has_no_deviation_and_no_test(tmp_path):
    made(tmp_path / "plain", "plain", accuracies(0.7))
    made(tmp_path / "rat", "rat", accuracies(0.7))
    scores, gains, all_scores = drawn(markdown(judge(read([tmp_path]))))
    assert scores[1] == ["`plain`", "1", "70.00", "-", "-", "-"]
    assert gains[1] == ["`rat`", "+0.00", "-", "0 of 1, 1 tied"]
    assert all_scores[1] == ["`plain`", "0.7000", "0.3000"]


def test_trials_and_examples_have_tables(tmp_path):
    made(tmp_path / "plain", "plain", accuracies(0.70, 0.72))
    made(tmp_path / "rat", "rat", accuracies(0.73, 0.75))
    for name, value in (("plain", 0.7), ("rat", 0.79)):
        chosen = {"epsilon": "0.1", "--dropout": "0.3"} if name == "rat" else {}
        search = {"trials": 12, "settings": 3, "chosen": chosen, "held_back": {"eval_accuracy": value}}
        (tmp_path / name / "search.json").write_text(json.dumps(search))
    text = markdown(judge(read([tmp_path])))
    assert " `rat`: epsilon 0.1, --dropout 0.3." in text
    trials = drawn(text)[3]
    assert trials == [
        ["method", "trials", "settings", "held back", "final", "gap"],
        ["`plain`", "12", "3", "70.00", "71.00", "-1.00"],
        ["`rat`", "12", "3", "79.00", "74.00", "+5.00"],
    ]


def test_csv_reads_back(odd):
    folder, names = odd
    rows = list(csv.DictReader(io.StringIO(as_csv(judge(read([folder]))))))
    assert [row["method"] for row in rows] == names
    for row, at in zip(rows, range(len(names)), strict=True):
        values = [0.7 + 0.01 * at + 0.003 * ((seed * (at + 3)) % 7) for seed in range(5) if (at, seed) != (2, 2)]
        assert float(row["mean"]) == pytest.approx(sum(values) / len(values))
        assert (row["n"], row["failed"]) == (str(len(values)), "3" if at == 2 else "")
    assert rows[0]["gain"] == rows[0]["p_holm"] == ""
    assert float(rows[1]["gain"]) == pytest.approx(float(rows[1]["mean"]) - float(rows[0]["mean"]))


def test_json_has_every_seed_and_every_command(odd):
    folder, names = odd
    told = json.loads(json.dumps(everything(judge(read([folder])))))
    assert [row["method"] for row in told["methods"]] == names
    for at, row in enumerate(told["methods"]):
        records = [json.loads((folder / f"m{at}" / f"seed-{seed}.json").read_text()) for seed in range(1, 6)]
        assert row["commands"] == [record["command"] for record in records]
        finished = [record for record in records if record["finished"]]
        assert row["seeds"] == [record["seed"] for record in finished]
        assert row["scores"]["eval_loss"]["values"] == [record["results"]["eval_loss"] for record in finished]
        assert row["values"] == {str(r["seed"]): r["results"]["eval_accuracy"] for r in finished}


# LaTeX's ten special signs, as its manual lists them, must not stand alone.
def bare_specials(line):
    line = re.sub(r"(?<!\\)\$[^$]*(?<!\\)\$", "", line)  # our own formulas
    line = re.sub(r"\\[&%$#_{}]|\\text\w+\{\}|-\{\}|\\\\$|\\,|\\(top|mid|bottom)rule", "", line)
    return re.findall(r"[%$#_{}~^\\]", line)


def test_latex_is_escaped(odd):
    folder, names = odd
    lines = as_latex(judge(read([folder]))).splitlines()
    inside = lines[lines.index(r"\toprule") : lines.index(r"\bottomrule")]
    rows = [line for line in inside if line.endswith(r"\\")]
    assert len(rows) == 1 + len(names)
    for line in rows[1:]:
        assert bare_specials(line) == []
        assert len(re.findall(r"(?<!\\)&", line)) == 7, "eight columns"
    assert escaped("50 % & more_or_less #1 {x} ~ ^ \\ $x$") == (
        r"50 \% \& more\_or\_less \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} \$x\$"
    )
    assert escaped("plain --dropout 0") == "plain -{}-{}dropout 0"
    assert "72.00" in as_latex(judge(read([folder]))) or "\\pm" in as_latex(judge(read([folder])))


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


@pytest.mark.filterwarnings("error")
def test_pictures_have_a_panel_for_each_cell(odd, tmp_path_factory):
    verdict = judge(read([odd[0]]))
    assert size(picture_of_seeds(verdict))[0] == 560
    assert size(picture_of_cost(verdict))[0] == 500
    several = tmp_path_factory.mktemp("several")
    for cell in "vwxyz":
        made(several / cell / "p", "plain", accuracies(0.70, 0.72), dataset=cell)
        made(several / cell / "q", "rat", accuracies(0.73, 0.75, seconds=(1, 2)), dataset=cell)
    verdict = judge(read([several]))
    assert size(picture_of_seeds(verdict))[0] == 3 * 560
    assert size(picture_of_cost(verdict)) > (3 * 500, 2 * 360)


@pytest.mark.parametrize("results", [{1: None}, accuracies(0.7)])
def test_pictures_of_next_to_nothing(tmp_path, results):
    made(tmp_path / "p", "plain", results)
    made(tmp_path / "q", "rat", accuracies(0.7))
    verdict = judge(read([tmp_path]))
    assert size(picture_of_seeds(verdict))
    assert size(picture_of_cost(verdict))


# -- commands --------------------------------------------------------------------------------------------------------


def ran(lines):
    """What bash runs, with a program that tells its words in the place of hf-rat."""
    script = "hf-rat() { printf 'hf-rat'; printf '\\0%s' \"$@\"; printf '\\0\\0'; }\n" + "\n".join(lines)
    out = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout
    return [one.split("\0") for one in out.split("\0\0") if one]


def commands_of(methods, seeds, base):
    made = []
    for at, (name, flags) in enumerate(methods.items()):
        for seed in seeds:
            words = ["hf-rat", *base, *flags, "--seed", str(seed), "--output_dir", f"o u t/{at}/seed-{seed}"]
            made.append((name, seed, shlex.join(words)))
    return made


@pytest.mark.parametrize(
    ("seeds", "methods"),
    [
        ([1, 2, 3], {"plain": ["--reg", "plain"], "rat": ["--reg", "rat(epsilon=1, alpha='x')"]}),
        (
            [-1, 7],
            {"plain": ["--dropout", "0", "--reg", "plain"], "odd": ["--run_name", '$HOME `ls` "a\'b" *', "--x"]},
        ),
        ([5], {"plain": ["--reg", "plain"], "rat": ["--reg", "rat"]}),
        ([1, 2], {"plain": ["--reg", "plain"]}),
        ([11, 1], {"seed": ["--max_steps", "11", "--reg", "plain"]}),
    ],
)
def test_bash_makes_exactly_the_commands(seeds, methods):
    commands = commands_of(methods, seeds, ["glue", "--task_name", "rte", "--bf16"])
    lines = shortened(commands)
    assert sorted(ran(lines)) == sorted(shlex.split(command) for _, _, command in commands)


def test_shared_flags_stand_once():
    methods = {str(at): ["--reg", f"rat(alpha={at})"] for at in range(6)}
    lines = shortened(commands_of(methods, [1, 2, 3], ["glue", "--task_name", "rte"]))
    assert sum("--task_name rte" in line for line in lines) == 1
    assert len(lines) == 3 + 2 + 6


def test_runs_whose_commands_differ_in_more_than_the_seed_stand_alone():
    odd = [("plain", 1, "hf-rat glue --a 1 --seed 1"), ("plain", 2, "hf-rat glue --a 2 --seed 2")]
    assert ran(shortened(odd)) == [shlex.split(command) for _, _, command in odd]
    assert shortened(odd[:1]) == [odd[0][2]]


def test_runs_that_were_made_by_other_programs_are_as_they_are():
    odd = [("plain", 1, "hf-rat glue --seed 1"), ("plain", 2, "python other.py")]
    assert shortened(odd) == [command for _, _, command in odd]


# -- files -----------------------------------------------------------------------------------------------------------


def test_what_is_written(odd, capsys):
    folder, names = odd
    verdict = tell(read([folder]), folder, ["hf-rat compare ..."])
    assert verdict.baseline == "plain"
    assert wide(capsys.readouterr().out) <= 80
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {"results.json", "table.csv", "table.md", "table.tex", "seeds.png", "cost.png"}
    told = json.loads((folder / "results.json").read_text())
    assert (told["command"], len(told["methods"])) == ("hf-rat compare ...", len(names))
    text = (folder / "table.md").read_text()
    assert "hf-rat compare ..." in text
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    wanted = [command for row in told["methods"] for command in row["commands"]]
    assert sorted(ran(blocks[1].splitlines())) == sorted(map(shlex.split, wanted))
    again = read([folder])
    assert [record.method for record in again] == [record.method for record in read([folder])]
    assert list(dict.fromkeys(record.method for record in again)) == names


def test_versions_and_git_are_those_of_the_runs(tmp_path):
    state = {"commit": "0123456789abcdef", "dirty": True}
    made(tmp_path / "p", "plain", {1: {"eval_accuracy": 0.5}}, versions={"torch": "1"}, git=state)
    made(tmp_path / "q", "rat", {1: {"eval_accuracy": 0.5}}, versions={"torch": "2"}, git=None)
    tell(read([tmp_path]), tmp_path, [])
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["versions"] == {"torch": "1, 2"}
    assert [row["git"] for row in told["methods"]] == [[state], []]
    text = (tmp_path / "table.md").read_text()
    assert "Versions: torch 1, 2." in text
    assert "made at commit 0123456789abcdef, with changes." in text


@pytest.mark.parametrize("name", ["results.json", "table.md", "seeds.png"])
def test_a_file_that_cannot_be_written_is_one_line_and_nothing_is_lost(tmp_path, monkeypatch, capsys, name):
    made(tmp_path / "p", "plain", accuracies(0.5))
    tell(read([tmp_path]), tmp_path, ["first"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    (tmp_path / f"{name}.partial").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=rf"{re.escape(name)} cannot be written \(No space left on device\)"):
        tell(read([tmp_path]), tmp_path, ["second"])
    assert "Accuracy of the validation split" in capsys.readouterr().out, "the verdict is on the terminal all the same"
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after.keys() == before.keys()
    assert after[name] == before[name]
    (tmp_path / "there").write_text("a file")
    with pytest.raises(ValueError, match=r"--output_dir .*there cannot be made"):
        tell(read([tmp_path]), tmp_path / "there", ["third"])

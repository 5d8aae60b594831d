"""hf-rat verdict: finished comparisons are told anew, and what is wrong with them in one line."""

import json

import pytest
from made_runs import accuracies, made

from hf_rat.cli.main import main


@pytest.fixture
def comparison(tmp_path):
    """Data sets a to d, the strength of fgm another on each; (their folder, folder -> its arguments)."""
    for at, name in enumerate("abcd"):
        made(tmp_path / name / "p", "plain", accuracies(0.70, 0.72, 0.74))
        made(tmp_path / name / "f", f"fgm(epsilon={at})", accuracies(0.72, 0.75, 0.76))
        told = {"command": f"hf-rat compare {name}", "versions": {"torch": name}, "methods": [{"method": "plain"}]}
        (tmp_path / name / "results.json").write_text(json.dumps(told))
    return tmp_path


def test_one_folder(comparison, capsys):
    assert main(["verdict", str(comparison / "a")]) == 0
    # Differences 2, 3 and 2 points: mean 7/3, sd .57735, half an interval 4.302653 * .57735 / sqrt(3) = 1.4342.
    assert "gains** 0.9 to 3.8 points over `plain`" in " ".join(capsys.readouterr().out.split())
    told = json.loads((comparison / "a" / "results.json").read_text())
    assert told["command"] == "hf-rat compare a"
    assert told["versions"] == {"torch": "a"}, "old records have none: they are kept from the table before"
    assert told["told_by"] == f"hf-rat verdict {comparison / 'a'}"
    first = (comparison / "a" / "table.md").read_text()
    assert main(["verdict", str(comparison / "a")]) == 0
    assert (comparison / "a" / "table.md").read_text() == first, "told twice it is the same"


def test_several_folders(comparison, capsys):
    folders = [str(comparison / name) for name in "abcd"]
    rows = [f"fgm(epsilon={at})" for at in range(4)]
    output = comparison / "all"
    assert main(["verdict", *folders, "--output_dir", str(output), "--alike", "fgm", *rows]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "## Over 4 cells" in said
    told = json.loads((output / "results.json").read_text())
    assert told["command"] == [f"hf-rat compare {name}" for name in "abcd"]
    assert [(row["cell"], row["method"]) for row in told["methods"]] == [
        (name, method) for name in "abcd" for method in ("plain", "fgm")
    ]
    assert told["across"]["gains"]["fgm"]["improvement"] == pytest.approx(7.5 / 9)
    assert not (comparison / "a" / "seeds.png").exists(), "the folders themselves are left as they were"


def test_without_names_in_common_nothing_is_said_over_cells(comparison, capsys):
    folders = [str(comparison / name) for name in "abcd"]
    assert main(["verdict", *folders, "--output_dir", str(comparison / "all")]) == 0
    assert "`--alike NAME METHOD METHOD ...` puts several under one name" in " ".join(capsys.readouterr().out.split())


def test_baseline_and_score(comparison, capsys):
    assert main(["verdict", str(comparison / "a"), "--baseline", "fgm(epsilon=0)", "--score", "loss"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Loss of the validation split; lower is better, and a gain is what it falls." in said
    assert "**`plain` raises** the loss by 0.0090 to 0.0377 against `fgm(epsilon=0)`" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "FOLDER"),
        ("{0}/a {0}/b", "--output_dir is missing: with several folders"),
        ("{0}/gone", "gone is no folder of hf-rat compare: not there"),
        ("{0}", "holds no run of hf-rat compare; there are runs in {0}/a, {0}/b, {0}/c"),
        ("{0}/a --baseline rat", "--baseline rat: no run is of it; there are: plain, fgm(epsilon=0)"),
        ("{0}/a --score f1", "--score f1: no run has it; there are: accuracy, loss"),
        ("{0}/a --alike x", "--alike x: name the methods that it stands for, too"),
        ("{0}/a --alike x rat", "--alike: no run is of the method 'rat'; there are: plain, fgm(epsilon=0)"),
        ("{0}/a --sore f1", "unrecognized arguments: --sore f1"),
        ("{0}/a --output_dir {0}/a/p/seed-1.json", "seed-1.json cannot be made"),
        ("{0}/a --output_dir /dev/full/x", "/dev/full/x cannot be made"),
    ],
)
def test_bad_input_is_one_line(comparison, capsys, line, message):
    assert main(["verdict", *line.format(comparison).split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message.format(comparison) in error


def test_help_imports_nothing_heavy(capsys):
    with pytest.raises(SystemExit) as end:
        main(["verdict", "--help"])
    assert not end.value.code
    shown = capsys.readouterr().out
    assert "--alike" in shown
    assert max(map(len, shown.splitlines())) <= 120

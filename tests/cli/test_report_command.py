"""hf-rat report: what the page says is what the runs and the verdict say; what is wrong is told in one line."""

import html
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from made_runs import accuracies, made

from hf_rat.analysis.answers import Answers
from hf_rat.analysis.calibration import Bin, Calibration, Reliability
from hf_rat.analysis.dropout_gap import DropoutGap
from hf_rat.analysis.robustness import Curve
from hf_rat.cli.main import main
from hf_rat.report import page

EVIL = "<script>document.title='hacked'</script>"


def history(scale):
    """What a run of R-AT logs: at step 10, 20 and 30."""
    logs = [
        {"step": s, "loss": scale * 3 / s, "loss_task": scale * 2 / s, "loss_adversarial_task": scale / s}
        for s in (10, 20, 30)
    ]
    return [*logs, {"step": 30, "eval_loss": 0.5 * scale, "eval_accuracy": 0.75, "eval_runtime": 3.0}]


@pytest.fixture
def comparison(tmp_path):
    """Data sets a to d; on a the runs have their folders with logs, and one method has a name that is no name."""
    for name in "abcd":
        made(tmp_path / name / "p", "plain", accuracies(0.70, 0.72, 0.74, seconds=(10, 10, 10)))
        more = {"git": {"commit": "c0ffee", "dirty": False}}
        made(tmp_path / name / "f", "fgm", accuracies(0.72, 0.75, 0.76, seconds=(20, 25, 30)), **more)
        told = {"command": f"hf-rat compare {name}", "versions": {"torch": "9.8.7"}, "methods": [{"method": "plain"}]}
        (tmp_path / name / "results.json").write_text(json.dumps(told))
    for seed in (1, 2):
        (tmp_path / "a" / "f" / f"seed-{seed}").mkdir()
        state = {"log_history": history(seed)}
        (tmp_path / "a" / "f" / f"seed-{seed}" / "trainer_state.json").write_text(json.dumps(state))
    made(tmp_path / "a" / "evil", EVIL, accuracies(0.5))
    return tmp_path


def shown(path):
    return path.read_text(encoding="utf-8")


def text_of(source):
    """What a reader reads."""
    bare = re.sub(r"<(script|style)[ >].*?</\1>", " ", source, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"</(td|th|li|p|h\d)>", " ", bare))).split())


def test_a_comparison(comparison, capsys):
    assert main(["report", str(comparison / "a")]) == 0
    assert "Written to " in capsys.readouterr().out
    source = shown(comparison / "a" / "report.html")
    text = text_of(source)
    # Differences 2, 3 and 2 points: mean 7/3, sd .57735, half an interval 4.302653 * .57735 / sqrt(3) = 1.4342.
    assert "fgm gains over plain; nothing is settled for" in text
    assert "<strong><code>fgm</code> gains</strong> 0.9 to 3.8 points over <code>plain</code>" in source
    # Seconds: the medians 25 and 10, and the median of the ratios 2, 2.5 and 3.
    assert re.search(r"fgm 3 74\.33 2\.08 25 2\.50x \+2\.33 \+0\.90 to \+3\.77 3 of 3", text)
    assert {"hf-rat compare a", "9.8.7", "c0ffee"} <= set(re.findall(r"hf-rat compare a|9\.8\.7|c0ffee", text))
    assert "2 of 7 runs have a log" in text
    for title in ("Training loss, the sum", "Component: adversarial task", "Component: task", "Accuracy on the vali"):
        assert title in text


def test_each_seed_is_a_dot_where_the_axis_says(comparison):
    assert main(["report", str(comparison / "b")]) == 0
    figure = re.search(r'<figure class="strips".*?</figure>', shown(comparison / "b" / "report.html"), re.S)[0]
    ticks = [
        (float(place), float(text)) for place, text in re.findall(r'x-tick" style="left:([\d.]+)%">([^<]+)', figure)
    ]
    (low, first), (high, last) = ticks[0], ticks[-1]
    dots = re.findall(r'class="dot" style="left:([\d.]+)%;[^"]*" title="seed (\d): ([\d.]+)"', figure)
    read = [first + (float(left) - low) / (high - low) * (last - first) for left, _, _ in dots]
    assert read == pytest.approx([70, 72, 74, 72, 75, 76], abs=0.02)
    assert [float(said) for *_, said in dots] == [70, 72, 74, 72, 75, 76]
    (bar,) = re.findall(r'class="interval[^"]*" style="left:([\d.]+)%;width:([\d.]+)%', figure)
    ends = [first + (at - low) / (high - low) * (last - first) for at in (float(bar[0]), sum(map(float, bar)))]
    assert ends == pytest.approx([72 + 7 / 3 - 1.4342, 72 + 7 / 3 + 1.4342], abs=0.02), "from the baseline's mean, 72"


def test_several_comparisons_are_cells_of_one(comparison):
    output = comparison / "all.html"
    folders = [str(comparison / name) for name in "bcd"]
    (comparison / "a" / "evil" / "seed-1.json").unlink()
    assert main(["report", str(comparison / "a"), *folders, "--output", str(output), "--title", "Four & more"]) == 0
    source = shown(output)
    assert "<h1>Four &amp; more</h1>" in source
    assert re.search(r'class="lede">\s*<code>fgm</code> gains over <code>plain</code>\.', source)
    assert re.findall(r"<h2>(.*?)</h2>", source) == ["Over 4 cells", "a", "b", "c", "d", "Settings"]


def test_what_stands_in_files_is_no_html(comparison):
    assert main(["report", str(comparison / "a"), "--title", EVIL]) == 0
    source = shown(comparison / "a" / "report.html")
    assert EVIL not in source
    assert source.count(html.escape(EVIL, quote=False).replace("'", "&#39;")) > 5


def test_the_page_asks_the_network_for_nothing(comparison):
    assert main(["report", str(comparison / "a")]) == 0
    source = shown(comparison / "a" / "report.html")
    assert not re.findall(r'(?:src|href)="(?!#)', source)
    assert not re.findall(r"url\(|@import|https?:", source)
    assert "default-src 'none'" in source


def test_single_runs(tmp_path):
    for name, score in (("one", 0.5), ("two", 0.625)):
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        results = {"eval_accuracy": score, "eval_runtime": 2.0, "train_runtime": 12.5, "train_loss": 3.0}
        (folder / "all_results.json").write_text(json.dumps(results))
        state = {"global_step": 30, "log_history": history(1)}
        state["stateful_callbacks"] = {"hf_rat": {"attributes": {"regularizer": f"rat(epsilon={score})"}}}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    folders = [str(tmp_path / name / "run") for name in ("one", "two")]
    assert main(["report", *folders, "--output", str(tmp_path / "x.html")]) == 0
    text = text_of(shown(tmp_path / "x.html"))
    assert "one 0.5000 12.5" in text
    assert "two 0.6250 12.5" in text
    assert "2 single runs" in text
    assert "regularizerrat(epsilon=0.625)" in text.replace(" ", "")
    assert "gains" not in text


def test_the_card_of_a_run_shows_the_pictures_in_its_folder(tmp_path, capsys):
    (tmp_path / "all_results.json").write_text('{"eval_accuracy": 0.5}')
    card = "---\ntags: [a]\n---\n\n# x\n\n![Learning curves](learning_curves.png)\n\n## Regularization\n\nend\n"
    (tmp_path / "README.md").write_text(card)
    for name in ("learning_curves.png", "character_noise.png", "a b.png"):
        (tmp_path / name).write_bytes(b"")
    line = ["report", str(tmp_path), "--card"]
    assert main(line) == 0
    added = "![A b](a%20b.png)\n\n![Character noise](character_noise.png)\n\n## Regularization"
    assert (tmp_path / "README.md").read_text() == card.replace("## Regularization", added)
    assert main(line) == 0
    assert (tmp_path / "README.md").read_text().count("(character_noise.png)") == 1, "said twice it is the same"
    (tmp_path / "README.md").unlink()
    assert main(line) == 2
    assert "--card: " in capsys.readouterr().err


def analysis(folder):
    """robustness.json, calibration.json and gap.json as `hf-rat analyze` makes them of what is known."""
    base = [Answers(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 0.0])) for _ in range(2)]
    own = [base[0], Answers(np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0]))]
    curve = Curve("character noise", "rate per character", (0.0, 0.5), {"plain": base, EVIL: own})
    about = {"runs": {}, "rows": 3, "split": "test", "settings": {"seed": 7}}
    folder.mkdir()
    (folder / "robustness.json").write_text(json.dumps({**about, "curves": {curve.name: curve.summary()}}))
    bins = (Bin(0.0, 0.5, 0, None, None), Bin(0.5, 1.0, 4, 0.8, 0.75))
    before = Reliability(accuracy=0.75, confidence=0.8, nll=0.5, brier=0.25, ece=0.05, bins=bins)
    found = Calibration(1.25, 10, 4, 0, before, replace(before, ece=0.03))
    (folder / "calibration.json").write_text(json.dumps({**about, "models": {"plain": asdict(found)}}))
    scores = {"nll": 0.5, "accuracy": 0.75}
    gap = DropoutGap(
        4, 0, scores, {**scores, "nll": 0.625}, scores, scores, 0.002, 0.9, 0.1, 0.8, {"fd": 0.4, "el": 0.3}
    )
    told = {**asdict(gap), "input_gradient_norm": 1.5}
    (folder / "gap.json").write_text(json.dumps({**about, "models": {"plain": told}}))
    return folder


def test_analyses(tmp_path):
    folder = analysis(tmp_path / "analysis")
    assert main(["report", str(folder)]) == 0
    source = shown(folder / "report.html")
    text = text_of(source)
    assert "3 rows of the test split; seed: 7" in text
    assert "plain 1.250 0.0500 0.0300 0.5000 0.5000 0.2500 0.2500" in text
    assert "plain 0.5000 0.6250 0.5000 0.7500 0.7500 0.7500 0.002 0.9000 0.1 0.3 1.5" in text
    titles = [html.unescape(title) for title in re.findall(r'class="dot"[^>]*title="([^"]*)"', source)]
    assert f"{EVIL}: 1 at 0.5" in titles, "its loss, and its accuracy"
    assert f"{EVIL}: 0.3333 at 0.5" in titles, "one row of three more is right than of plain's"
    assert f"{EVIL}: -1 at 0.5" not in titles, "where there is an accuracy the difference is that"
    assert "plain: 0.75 at 0.8" in titles, "of the bin that has rows"


def grid(folder, ys):
    folder.mkdir()
    xs = [-1.0, 0.0, 1.0]
    models = {name: {"losses": [[x * x + y for x in xs] for y in ys]} for name in ("plain", EVIL)}
    models["plain"]["losses"][0][0] = float("nan")
    models["plain"]["areas"] = [0.25, 1.5] if len(ys) > 1 else None
    models[EVIL]["losses"][-1:] = [None] if len(ys) > 1 else [[1.0, 0.0, 1.0]]  # not measured yet
    told = {"rows": 3, "split": "test", "seed": 5, "xs": xs, "ys": ys, "levels": [0.5, 2.0], "models": models}
    (folder / "landscape.json").write_text(json.dumps(told))
    return folder


def test_a_landscape_of_a_grid_brings_plotly_with_it_and_stays_small(tmp_path):
    pytest.importorskip("plotly", reason="the extra report")
    folder = grid(tmp_path / "grid", [-1.0, 0.0, 1.0])
    assert main(["report", str(folder)]) == 0
    source = shown(folder / "report.html")
    data = [json.loads(one) for one in re.findall(r'<script type="application/json">(.*?)</script>', source)]
    assert data[0]["z"] == [[None, -1, 0], [1, 0, 1], [2, 1, 2]]
    assert data[1]["z"][-1] == [None, None, None], "a row that is not measured yet is a hole"
    text = text_of(source)
    assert "model below 0.5 below 2 plain 0.25 1.5 The area" in text
    assert "3 rows of the test split; seed: 5" in text
    assert data[0]["range"] == data[1]["range"] == [-1, 2], "one scale for all"
    assert (folder / "report.html").stat().st_size < 8_000_000
    assert EVIL not in source


def test_a_landscape_on_a_line_needs_none(tmp_path):
    folder = grid(tmp_path / "line", [0.0])
    assert main(["report", str(folder)]) == 0
    source = shown(folder / "report.html")
    assert "Loss along the direction" in source
    assert len(source) < 100_000


def test_a_steep_landscape_has_a_logarithmic_scale(tmp_path):
    pytest.importorskip("plotly", reason="the extra report")
    folder = tmp_path / "steep"
    folder.mkdir()
    models = {"plain": {"losses": [[0.1, 50.0], [3.0, 7.0]]}}
    (folder / "landscape.json").write_text(json.dumps({"xs": [0, 1], "ys": [0, 1], "models": models}))
    assert main(["report", str(folder)]) == 0
    source = shown(folder / "report.html")
    assert json.loads(re.search(r'<script type="application/json">(.*?)</script>', source)[1])["log"] is True
    assert "The scale of the loss is logarithmic." in text_of(source)


def test_without_plotly_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    assert main(["report", str(grid(tmp_path / "grid", [-1.0, 1.0]))]) == 2
    assert "pip install 'hf-rat[report]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "RUN"),
        ("{0}/a {0}/b", "--output is missing: with several folders"),
        ("{0}/gone", "gone is no folder of runs: not there"),
        ("{0}/empty", "empty holds no run of hf-rat compare, no all_results.json or trainer_state.json"),
        ("{0}", "holds no run of hf-rat compare; there are runs in {0}/a, {0}/b, {0}/c"),
        ("{0}/a --baseline rat", "--baseline rat: no run is of it; there are: plain"),
        ("{0}/a --score f1", "--score f1: no run has it; there are: accuracy, loss"),
        ("{0}/a --alike x", "--alike x: name the methods that it stands for, too"),
        ("{0}/b/f/seed-1.json", "seed-1.json is no folder of runs: a file"),
        ("{0}/a --output {0}/gone/x.html", "gone/x.html cannot be written (No such file or directory)"),
        ("{0}/a {0}/a --output {0}/x.html", "is named twice"),
        ("{0}/cut", "robustness.json is cut short or cannot be read"),
        ("{0}/other", "other/robustness.json is not what hf-rat analyze robustness writes (KeyError: 'curves')"),
    ],
)
def test_bad_input_is_one_line(comparison, capsys, line, message):
    for name in ("empty", "cut", "other"):
        (comparison / name).mkdir()
    (comparison / "cut" / "robustness.json").write_text("{")
    (comparison / "other" / "robustness.json").write_text("{}")
    assert main(["report", *line.format(comparison).split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message.format(comparison) in error


def test_a_page_that_is_too_large_is_not_written(comparison, capsys, monkeypatch):
    (comparison / "a" / "report.html").write_text("the former one")
    monkeypatch.setattr(page, "LARGEST", 1000)
    assert main(["report", str(comparison / "a")]) == 2
    assert "more than 0" in capsys.readouterr().err
    assert shown(comparison / "a" / "report.html") == "the former one"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("**`a` gains** 1 < 2", "<strong><code>a</code> gains</strong> 1 &lt; 2"),
        ("`` `x` `` and `**`", "<code>`x`</code> and <code>**</code>"),
        ("**open", "<strong>open</strong>"),
        ("a ` b", "a ` b"),
    ],
)
def test_markdown_of_sentences(text, wanted):
    assert page.inline(text) == wanted

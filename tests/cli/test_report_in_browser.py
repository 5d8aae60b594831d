"""Pages of hf-rat report in a headless Chromium: on a telephone and on a desk, light and dark, sorted, turned."""

import json
import math

import pytest
from browser import Browser, program
from made_runs import accuracies, made

from hf_rat.cli.main import main

if program() is None:
    pytest.skip("no Chromium is installed (apt-get install chromium)", allow_module_level=True)

LONG = "rat(epsilon=0.3, alpha=0.5, passes=3, divergence='js', scope='table', unit='relative', site='embeddings.one')"
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Two data sets, four methods, one of them with a name that is longer than a telephone is wide."""
    folder = tmp_path_factory.mktemp("comparison")
    logs = [{"step": s, "loss": 3 / s, "loss_task": 2 / s, "loss_adversarial_consistency": 1 / s} for s in (5, 10, 15)]
    for name in ("one", "two"):
        own = {"dataset": name, "versions": {"torch": "2.13.0"}, "git": {"commit": "0123456789" * 4, "dirty": True}}
        scores = {"plain": (0.7, 0.72, 0.74), "fgm": (0.68, 0.70, 0.71), LONG: (0.71, 0.73, 0.75), "rdrop": (0.6,)}
        for number, (method, values) in enumerate(scores.items()):
            seconds = [10.0 * (number + 1)] * len(values)
            made(folder / name / f"m{number}", method, accuracies(*values, seconds=seconds), **own)
            (folder / name / f"m{number}" / "seed-1").mkdir()
            state = json.dumps({"log_history": logs})
            (folder / name / f"m{number}" / "seed-1" / "trainer_state.json").write_text(state)
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def landscape(tmp_path_factory):
    pytest.importorskip("plotly", reason="the extra report")
    folder = tmp_path_factory.mktemp("landscape")
    xs = [x / 4 for x in range(-4, 5)]
    models = {
        n: {"losses": [[a * x * x + math.cos(y) for x in xs] for y in xs]} for n, a in (("plain", 1), ("rat", 2))
    }
    (folder / "landscape.json").write_text(json.dumps({"xs": xs, "ys": xs, "models": models}))
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


# What reaches beyond the screen, and is in no box that scrolls or cuts it off.
TOO_WIDE = """[...document.querySelectorAll("body *")].filter((one) => {
  for (let box = one; box; box = box.parentElement) {
    if (!["visible", ""].includes(getComputedStyle(box).overflowX)) return false;
  }
  const { left, right, width } = one.getBoundingClientRect();
  return width > 0 && (right > innerWidth + 0.5 || left < -0.5);
}).map((one) => one.outerHTML.slice(0, 100))"""

# The least contrast of a text with the page's ground, as WCAG 2 has it.
CONTRAST = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const texts = document.querySelectorAll("p, li, td, th, h1, h2, h3, .x-tick, .y-tick, dt, dd");
  return Math.min(...[...texts].map((one) => {
    const own = light(getComputedStyle(one).color);
    return (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05);
  }));
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_read_on_any_screen(browser, comparison, width, dark):
    browser.open(comparison, width, dark=dark)
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(TOO_WIDE) == []
    assert browser.run(CONTRAST) >= 4.5
    assert browser.said == []
    brightness = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (brightness < 60) == dark
    heads = browser.run("[...document.querySelectorAll('h2, h3')].map((one) => one.textContent)")
    parts = ["Verdict", "Scores", "Every seed", "Score against cost", "Learning curves"]
    assert heads[:12] == ["one", *parts, "two", *parts]
    assert {"Settings", "Versions", "Commit"} <= set(heads)
    assert browser.run("document.querySelectorAll('.strips')[0].querySelectorAll('.dot').length") == 10


def test_a_dot_lies_where_the_axis_says(browser, comparison):
    """In pixels, as it is drawn."""
    browser.open(comparison, 1280)
    middle = "((one) => { const { left, width } = one.getBoundingClientRect(); return left + width / 2; })"
    figure = "document.querySelector('.strips')"
    ticks = browser.run(f"[...{figure}.querySelectorAll('.x-tick')].map((t) => [Number(t.textContent), {middle}(t)])")
    (low, left), (high, right) = ticks[0], ticks[-1]
    dots = browser.run(f"[...{figure}.querySelectorAll('.dot')].map({middle})")
    read = [low + (at - left) / (right - left) * (high - low) for at in dots]
    assert read == pytest.approx([68, 70, 71, 70, 72, 74, 71, 73, 75, 60], abs=0.1)


def test_a_click_sorts(browser, comparison):
    browser.open(comparison, 1280)
    names = "[...document.querySelector('table').tBodies[0].rows].map((row) => row.cells[0].textContent)"
    first = browser.run(names)
    click = "(() => {{ const head = document.querySelector('thead').rows[0].cells[{0}]; head.firstChild.click(); "
    click += "return [...document.querySelector('thead').rows[0].cells].map((one) => one.ariaSort); }})()"
    assert first == ["fgm", "plain", LONG, "rdrop"]
    marks = browser.run(click.format(2))
    assert browser.run(names) == [LONG, "plain", "fgm", "rdrop"], "by mean: 73, 72, 69.7 and 60"
    assert marks[2] == "descending"
    assert set(marks) == {"none", "descending"}
    assert browser.run(click.format(2))[2] == "ascending"
    assert browser.run(names) == ["rdrop", "fgm", "plain", LONG]
    assert browser.run(click.format(0))[:3] == ["ascending", "none", "none"]
    assert browser.run(names) == ["fgm", "plain", LONG, "rdrop"]
    browser.run(click.format(6))
    assert browser.run(names) == [LONG, "fgm", "rdrop", "plain"], "the baseline has no gain, and stands last"
    browser.run(click.format(6))
    assert browser.run(names) == ["rdrop", "fgm", LONG, "plain"]
    assert browser.said == []


@pytest.mark.slow  # WebGL by software
def test_surfaces_are_drawn_and_turn_together(browser, landscape):
    browser.open(landscape, 390, dark=True)
    assert browser.run("document.createElement('canvas').getContext('webgl') !== null"), "no WebGL by software"
    for number in range(2):
        browser.run(f"document.querySelectorAll('.surface')[{number}].scrollIntoView()")
        browser.wait(f"document.querySelectorAll('.surface')[{number}].classList.contains('ready')")
    assert browser.run("document.querySelectorAll('.surface canvas').length") >= 2
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run(TOO_WIDE) == []
    eye = "document.querySelectorAll('.drawing')[{0}]._fullLayout.scene.camera.eye.x"
    turned = "{'scene.camera': {eye: {x: 0.25, y: 2, z: 1}}}"
    browser.run(f"Plotly.relayout(document.querySelectorAll('.drawing')[0], {turned}).then(() => 0)")
    browser.wait(f"{eye.format(1)} === 0.25")
    assert browser.said == []

"""Every link, path and name in the documents leads somewhere; all results are reached."""

import inspect
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

import hf_rat
from hf_rat.finetuning.flags import DataTrainingArguments, ModelArguments
from hf_rat.finetuning.tag_flags import TagArguments
from hf_rat.finetuning.word_model_flags import WordModelArguments
from hf_rat.regularizers.recipe import ALWAYS, PART, RECIPES
from hf_rat.trainer.training_args import RegularizedTrainingArguments

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "results", "papers", "examples", "benchmarks", "configs")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
LINK = re.compile(r"!?\[[^\]\n]*\]\(\s*([^)\s]+)[^)\n]*\)")
OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:")


def text_of(document):
    """Without blocks of code and code in a line, where brackets mean other things."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`", "`", text)


def anchors(document):
    """Of headings, as GitHub makes them: lower case, no punctuation, hyphens for spaces, numbers where repeated."""
    found = set()
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.S | re.M)
    for heading in re.findall(r"^#+ +(.+)$", text, flags=re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
        number = 0
        while (unique := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(unique)
    return found


def broken(document):
    for target in LINK.findall(text_of(document)):
        if OUTSIDE.match(target):
            continue
        path, _, anchor = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        if not there.exists():
            yield f"{target}: there is no {there.relative_to(ROOT) if there.is_relative_to(ROOT) else there}"
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            yield f"{target}: no heading of {there.name} is #{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(document):
    assert list(broken(document)) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# One `two`: three!\n# Again\n# Again\n", encoding="utf-8")
    document = tmp_path / "document.md"
    document.write_text(
        "[a](there.md#one-two-three) [b](there.md#again-1) [`c`](https://example.org/x) ![p](gone.png)\n"
        "[d](there.md#again-2) [e](#nowhere)\n```\n[f](code.md)\n```\n`[g](code.md)`\n",
        encoding="utf-8",
    )
    targets = [line.partition(":")[0] for line in broken(document)]
    assert targets == ["gone.png", "there.md#again-2", "#nowhere"]


def test_results_that_docstrings_name_exist():
    named = set()
    for path in (ROOT / "hf_rat").rglob("*.py"):
        named.update(re.findall(r"\bresults/[\w/]+", path.read_text(encoding="utf-8")))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_result_is_reached_from_the_results_page():
    """Each folder of raw data is in a document that results/README.md leads to, or is linked itself."""
    page = ROOT / "results" / "README.md"
    reached, ahead = set(), [page]
    while ahead:
        document = ahead.pop()
        for target in LINK.findall(text_of(document)):
            there = (document.parent / target.partition("#")[0]).resolve()
            if OUTSIDE.match(target) or not there.is_relative_to(ROOT / "results") or there in reached:
                continue
            reached.add(there)
            if there.suffix == ".md" and there.exists():
                ahead.append(there)
    studies = {path.parent for path in (ROOT / "results").rglob("*.json") if not path.parent.name.startswith("seed")}
    runs = ("seed-*.json", "held-back-*.json")  # of a comparison, and of its race
    studies = {folder for folder in studies if not any(any(folder.glob(name)) for name in runs)}
    folders = {path if path.is_dir() else path.parent for path in reached}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(studies) if folder not in folders] == []


# -- paths and names -------------------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "papers").rglob("*.md"))
PATH = re.compile(r"(?<![\w./-])(?:hf_rat|tests|docs|benchmarks|configs|examples|results|papers)/[\w./*-]*\w")
NAME = re.compile(r"(?<![\w/.])hf_rat(?:\.\w+)+")


def missing(page):
    """Paths from the root of the repository, and dotted names of the package, that a page has and nothing else has."""
    for path in PATH.findall(page):
        if not list(ROOT.glob(path)):
            yield path
    for name in NAME.findall(page):
        if not resolves(name):
            yield name


def resolves(name):
    found, *rest = import_module("hf_rat"), *name.split(".")[1:]
    for part in rest:
        if not hasattr(found, part):
            try:
                import_module(f"{found.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    assert list(missing(page.read_text(encoding="utf-8"))) == []


def test_what_does_not_exist_is_found():
    page = (
        "`tests/test_links.py` `tests/distributed/test_engines_*.py` `hf_rat.passes.point.Point` hf_rat/passes "
        "`tests/test_gone.py` `hf_rat.gone.x` and `hf_rat.passes.point.Gone`, (`hf_rat/gone`)."
    )
    assert list(missing(page)) == ["tests/test_gone.py", "hf_rat/gone", "hf_rat.gone.x", "hf_rat.passes.point.Gone"]


def rows(page):
    """name -> the other cells, of the table rows of a page in docs whose first cell begins with a name in code."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `(\w+)[^`]*` \|(.*)\|$", text, re.MULTILINE))


def test_the_page_of_public_names_has_them_all():
    """A method is added without a row here; one that has a row is a method, and its row is right."""
    others = set(hf_rat.__all__) - set(RECIPES)
    assert others <= set(rows("api.md"))
    exported = re.findall(r"^\| `(\w+)` \| `(?=\w+=)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert exported
    assert set(exported) <= set(RECIPES)


HAVING_ARGUMENTS = [name for name, make in RECIPES.items() if inspect.signature(make).parameters]


@pytest.mark.parametrize("name", sorted(set(HAVING_ARGUMENTS) & set(rows("api.md"))))
def test_the_page_of_public_names_has_the_arguments_of(name):
    arguments = inspect.signature(getattr(hf_rat, name)).parameters.values()
    shown = ", ".join(f"{a.name}={a.default!r}" for a in arguments if a.name not in {**ALWAYS, **PART})
    cell = rows("api.md")[name]
    assert re.search(r"`([^`]*)`", cell).group(1).replace('"', "'") == shown
    assert ("no `warmup`" in cell) == ("warmup" not in [a.name for a in arguments])


@pytest.mark.parametrize("name", sorted(set(RECIPES) & set(rows("methods.md")) - {"plain"}))
def test_the_table_of_methods_has_the_paper_of_the_card_of(name):
    links = re.findall(r"https://[^)\s]+", rows("methods.md")[name])
    assert links
    assert set(links) <= set(re.findall(r"https://[^,\s]+", inspect.getdoc(RECIPES[name])))


def test_the_page_of_the_scripts_has_every_flag():
    text = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
    own = {
        f.name
        for kind in (ModelArguments, DataTrainingArguments, WordModelArguments, TagArguments)
        for f in fields(kind)
    }
    inherited = {f.name for kind in RegularizedTrainingArguments.__mro__[1:-1] for f in fields(kind)}
    own |= {f.name for f in fields(RegularizedTrainingArguments) if f.init} - inherited
    assert sorted(own - set(re.findall(r"--(\w+)", text))) == []

"""Every relative link of the documents leads to a file, its anchor to a heading; all results are reached."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "results", "examples", "benchmarks", "configs")
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
            if there.suffix == ".md":
                ahead.append(there)
    studies = {path.parent for path in (ROOT / "results").rglob("*.json") if not path.parent.name.startswith("seed")}
    studies = {folder for folder in studies if not list(folder.glob("seed-*.json"))}
    folders = {path if path.is_dir() else path.parent for path in reached}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(studies) if folder not in folders] == []

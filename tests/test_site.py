"""The site of docs/ is built, and every link in it leads somewhere."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material", reason="the extra `docs` is not installed")
pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self.links += [given[name] for name in ("href", "src") if given.get(name)]


def test_every_link_inside_leads_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 20
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            if not there.exists() or (parts.fragment and there in pages and parts.fragment not in pages[there].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, "\n".join(broken)


def test_nothing_is_fetched_from_elsewhere(site):
    """A page shows itself without a network: what it loads lies beside it."""

    class Loads(HTMLParser):
        def handle_starttag(self, tag, attrs):
            given = dict(attrs)
            loaded = given.get("src") if tag != "a" else None
            loaded = given.get("href") if tag == "link" and given.get("rel") == "stylesheet" else loaded
            assert not loaded or not urlsplit(loaded).netloc, f"<{tag}> loads {loaded}"

    for path in site.rglob("*.html"):
        Loads().feed(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["rat", "fgm", "sam"])
def test_a_method_has_its_card(site, name):
    page = (site / "cards" / "index.html").read_text(encoding="utf-8")
    assert f'id="hf_rat.regularizers.recipes.{name}"' in page

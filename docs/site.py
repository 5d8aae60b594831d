"""What the site has beside the pages of this folder, and where links lead that leave it.

mkdocs calls these functions (`hooks:` in mkdocs.yml). Pages are written for GitHub, where a link may lead to any file
of the repository: here a link to a page of the site stays one, every other leads to the file on GitHub.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ["CONTRIBUTING.md", "CHANGELOG.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("papers/**/*.md"))]
"""Pages of the site from outside this folder, by their paths in the repository, which they keep on the site."""

_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside."""
    for path in OTHERS:
        files.append(File.generated(config, path, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead each link of a page to the site or to GitHub."""
    own = page.file.src_uri
    written = own if own in OTHERS else f"docs/{own}"  # where the page lies in the repository
    here = posixpath.dirname(own)

    def lead(match: re.Match[str]) -> str:
        opening, target, anchor, closing = match[1], match[2], match[3] or "", match[4]
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(written), target))
        on_site = there.removeprefix("docs/") if there not in OTHERS else there
        if there in OTHERS or (there.startswith("docs/") and files.get_file_from_path(on_site)):
            return f"{opening}{posixpath.relpath(on_site, here or '.')}{anchor}{closing}"
        if not (ROOT / there).exists():
            raise FileNotFoundError(f"{written} links to {target}, and there is no {there}")
        kind = "tree" if (ROOT / there).is_dir() else "blob"
        return f"{opening}{config.repo_url}/{kind}/main/{there}{anchor}{closing}"

    pieces, end = [], 0
    for code in _CODE.finditer(markdown):
        pieces += [_LINK.sub(lead, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, _LINK.sub(lead, markdown[end:])])

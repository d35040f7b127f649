"""A hook of MkDocs: pages of the docs site that are files outside of docs/, and the links to and from them.

README.md is the start page. Files of the project that are no pages, such as measurements and sources, are named by
their path instead of linked. A link to a file that does not exist is a warning: `mkdocs build --strict` then fails.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
"""Pages by the file in the root of the project."""
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_IMAGE = re.compile(r"(?P<head>!\[[^\]]*\]\()(?P<target>[^)\s]+)\)")
_log = logging.getLogger("mkdocs.hooks.docs_site")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to pages of the site."""
    name = page.file.src_uri
    sources = {target: source for source, target in PAGES.items()}
    return site_links(markdown, sources.get(name, f"docs/{name}"))


def site_links(markdown: str, source: str) -> str:
    """The text of the file `source` (relative to the root of the project), with links that are right on the site."""

    def replaced(match: re.Match[str]) -> str:
        text, (target, _, anchor) = match["text"], match["target"].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = _from_root(target, source)
        if (page := _page(path)) is not None:
            return f"[{text}]({page}{'#' + anchor if anchor else ''})"
        if not (ROOT / path).exists():
            _log.warning("%s links to %s, which does not exist", source, path)
        return text if path in text else f"{text} (`{path}`)"

    def with_image(match: re.Match[str]) -> str:
        path = _from_root(match["target"], source)
        return f"{match['head']}{path.removeprefix('docs/')})"

    return _IMAGE.sub(with_image, _LINK.sub(replaced, markdown))


def _from_root(target: str, source: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _page(path: str) -> str | None:
    """The page of a file of the project; None if it is none. All pages are in one folder."""
    if path in PAGES:
        return PAGES[path]
    is_page = path.startswith("docs/") and path.endswith(".md")
    return path.removeprefix("docs/") if is_page else None

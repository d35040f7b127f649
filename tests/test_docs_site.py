"""Links of the docs lead to something that exists, on the site and in the repository."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import yaml

from tools.docs_site import PAGES, ROOT, site_links

SOURCES = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("source", SOURCES)
def test_every_link_leads_to_a_file(source: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        text = site_links((ROOT / source).read_text(encoding="utf-8"), source)
    assert caplog.messages == []
    for target in re.findall(r"\]\(([a-zA-Z_-]+\.md)[#)]", text):
        assert (ROOT / "docs" / target).is_file() or target in PAGES.values(), target


def test_links_are_those_of_the_site(caplog: pytest.LogCaptureFixture) -> None:
    assert site_links("[m](docs/metrics.md#verdicts)", "README.md") == "[m](metrics.md#verdicts)"
    assert site_links("[a](../ARCHITECTURE.md)", "docs/ray.md") == "[a](ARCHITECTURE.md)"
    assert site_links("![p](docs/report.png)", "README.md") == "![p](report.png)"
    assert site_links("[log](../benchmarks/LOG.md)", "docs/ray.md") == "log (`benchmarks/LOG.md`)"
    assert site_links("[x](https://example.com) [y](#here)", "README.md") == "[x](https://example.com) [y](#here)"
    assert not caplog.messages
    site_links("[x](nothing.md)", "README.md")
    assert "README.md links to nothing.md, which does not exist" in caplog.messages


def test_every_page_is_in_the_navigation_once() -> None:
    groups = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = [page for group in groups for entries in group.values() for page in entries]
    assert sorted(pages) == sorted({*PAGES.values(), *(path.name for path in (ROOT / "docs").glob("*.md"))})
    assert all(Path(page).suffix == ".md" for page in pages)

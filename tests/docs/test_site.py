"""The site's navigation; `make docs` checks its links and builds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]


def pages(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for below in entry.values() if isinstance(entry, dict) else ():
        for each in below if isinstance(below, list) else [below]:
            yield from pages(each)


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    listed = [page for entry in site["nav"] for page in pages(entry)]
    assert sorted(listed) == sorted(page.name for page in (REPOSITORY / "docs").glob("*.md"))

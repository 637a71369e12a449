"""Every claim of docs/privacy.md can be followed: the code and the tests it names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "privacy.md").read_text(encoding="utf-8")
CODE = sorted(set(re.findall(r"`(pe_ray/[\w/]+\.py):(\w+)`", PAGE)))
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def names(file: str) -> set[str]:
    """What a module defines at its top."""
    found: set[str] = set()
    for node in ast.parse((REPOSITORY / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize(("file", "name"), [*CODE, *TESTS])
def test_what_the_page_names_exists(file: str, name: str) -> None:
    assert name in names(file)


def test_the_page_names_code_and_tests_of_every_mechanism() -> None:
    assert len(CODE) >= 15
    assert len(TESTS) >= 25
    paths = re.findall(r"`((?:pe_ray|tests|docs|benchmarks)/[\w/.]+\.(?:py|md))", PAGE)
    assert all((REPOSITORY / path).exists() for path in paths)

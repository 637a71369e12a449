"""The lock files fit pyproject.toml and each other: a stale one is written anew by `make lock`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
NEEDED = PROJECT["project"]["dependencies"] + [
    needed for extra in EXTRAS.values() for needed in extra
]


def lock(name: str) -> list[Requirement]:
    lines = (REPOSITORY / name).read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def unmet(needed: list[str], name: str) -> list[str]:
    """What of `needed` no line of the lock `name` satisfies."""
    pins = {canonicalize_name(pin.name): pin for pin in lock(name)}
    missing = []
    for text in needed:
        wanted = Requirement(text)
        pin = pins.get(canonicalize_name(wanted.name))
        version = next(iter(pin.specifier)).version if pin else ""
        if wanted.name != "pe_ray" and version not in wanted.specifier:
            missing.append(text)
    return missing


def test_the_locks_fit_the_project() -> None:
    assert unmet(NEEDED, "requirements.txt") == []
    assert unmet(NEEDED + PROJECT["dependency-groups"]["dev"], "requirements-dev.txt") == []
    assert unmet(["numpy>=1000", "no-such-package"], "requirements.txt") != []


def test_the_lock_of_the_tools_holds_the_other() -> None:
    small, large = (
        {f"{pin.name}{pin.specifier}" for pin in lock(name)}
        for name in ("requirements.txt", "requirements-dev.txt")
    )
    assert small < large


def test_all_names_every_extra() -> None:
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == EXTRAS.keys() - {"all"}


@pytest.mark.parametrize("file", ["cluster.yaml", "pipelines/kubernetes/Dockerfile"])
def test_clusters_install_the_lock_with_faiss_for_gpus(file: str) -> None:
    assert any(pin.name == "faiss-cpu" for pin in lock("requirements.txt"))
    (line,) = [
        line for line in (REPOSITORY / file).read_text().splitlines() if "requirements.txt" in line
    ]
    assert "sed 's/^faiss-cpu/faiss-gpu/'" in line

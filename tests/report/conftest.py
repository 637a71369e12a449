"""One finished run for all tests of the report; tests that change a run use a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pe_ray import Config
from pe_ray.evolution import evolve

TREE = {
    "private": {"data": "sklearn:digits", "labels": [str(digit) for digit in range(10)]},
    "generator": {"kind": "rendered_text", "image_size": 12},
    "embedder": {"kind": "pixels", "size": 6},
    "votes": {"lookahead": 2, "neighbors": 2},
    "selection": {"keep_selected": True, "initial_variation_fold": 1},
    "schedule": {"iterations": 3, "num_samples": 60, "degrees": [0.5, 0.4, 0.25]},
    "privacy": {"epsilon": 20.0, "delta": 1e-4, "unit": "record", "label_fractions": "dp"},
    "resources": {"num_cpus": 2, "workers": 1},
}


@pytest.fixture(scope="session")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 iterations, 60 samples and released label counts; tests leave it unchanged."""
    folder = tmp_path_factory.mktemp("report")
    tree = {**TREE, "output": {"path": str(folder / "run"), "rows_per_part": 17}}
    tree["private"] = {**TREE["private"], "cache": str(folder / "cache")}  # type: ignore[dict-item]
    return evolve(Config.from_dict(tree))


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the finished run under another name."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(finished, tmp_path / name))

    return copy

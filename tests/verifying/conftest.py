"""One finished run for all tests of verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pe_ray import Config
from pe_ray.evolution import evolve


@pytest.fixture(scope="session")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose votes are smoothed in the first iteration only; not to be changed."""
    tree: dict[str, Any] = {
        "private": {"data": "sklearn:digits", "labels": [str(digit) for digit in range(10)]},
        "generator": {"kind": "rendered_text", "image_size": 12},
        "embedder": {"kind": "pixels", "size": 6},
        "selection": {"keep_selected": True, "smooth": 2, "overrides": {2: {"smooth": 1}}},
        "schedule": {"iterations": 2, "num_samples": 40, "degrees": [0.5, 0.25]},
        "privacy": {"epsilon": 2.0, "delta": 1e-4, "unit": "record", "label_fractions": "dp"},
        "resources": {"num_cpus": 2, "workers": 1},
        "output": {"path": str(tmp_path_factory.mktemp("verified") / "run"), "rows_per_part": 17},
    }
    return Path(str(evolve(Config.from_dict(tree))))

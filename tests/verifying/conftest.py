"""One finished run for all tests of verify."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import small_tree

from pe_ray import Config
from pe_ray.evolution import evolve


@pytest.fixture(scope="session")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose votes are smoothed in the first iteration only; not to be changed."""
    tree = small_tree(tmp_path_factory.mktemp("verified"))
    tree["selection"] = {"keep_selected": True, "smooth": 2, "overrides": {2: {"smooth": 1}}}
    tree["schedule"] |= {"iterations": 2, "degrees": [0.5, 0.25]}
    tree["privacy"] |= {"epsilon": 2.0, "label_fractions": "dp"}
    return Path(str(evolve(Config.from_dict(tree))))

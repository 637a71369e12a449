"""A search that runs in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def searched(tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Two settings, both cheap; every trial is compared with noisy moments."""
    tree["votes"] = {}
    tree["privacy"]["epsilon"] = 10.0
    tree["schedule"] |= {"iterations": 2, "num_samples": 20}
    tree["generator"]["image_size"] = 8
    tree["tuning"] = {
        "strategy": "compose",
        "space": {"votes.neighbors": [1, 2], "selection.denoise": ["threshold", "simplex"]},
        "objective": {"kind": "moments", "dim": 1},
        "num_trials": 2,
    }
    return tree

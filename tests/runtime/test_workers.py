"""Where parts are made: as many at a time as there are workers, which may change meanwhile."""

from __future__ import annotations

from functools import partial
from itertools import chain, repeat
from pathlib import Path

import pytest
from small_runs import EmptyParts

from pe_ray.config.blocks import ResourcesConfig
from pe_ray.runtime import workers
from pe_ray.runtime.workers import make_parts


@pytest.mark.parametrize("counts", [[1], [4, 1], [1, 4, 2]])
def test_all_parts_are_made_while_nodes_come_and_go(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[int]
) -> None:
    there = chain(counts, repeat(counts[-1]))
    monkeypatch.setattr(workers, "num_workers", lambda resources: next(there))
    requests = [{"start": start, "stop": start + 1} for start in range(6)]
    made = make_parts(requests, partial(EmptyParts, str(tmp_path)), ResourcesConfig())
    assert sorted(part.start for part in made) == list(range(6))

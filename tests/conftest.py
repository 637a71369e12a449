"""Shared fixtures: one small Ray for all tests, and a configuration that runs in seconds."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tiny_diffusion import save_pipeline

# Its assertions say what differs, as those in tests do.
pytest.register_assert_rewrite("undisturbed")

# Of the tests' own store (test_storage.py), before Ray's workers start: they inherit it.
os.environ |= {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests"}

# A busy machine makes any test late.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parents[1]
# The tests' own plugins (faulty.py), for workers too.
_PATHS = [str(REPOSITORY / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in _PATHS if path)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files of few tests, which hold the longest ones: what comes last is short, so that
    no process waits for another at the end (pytest-xdist itself would begin with many tests)."""
    num_tests = Counter(item.path for item in items)
    items.sort(key=lambda item: num_tests[item.path])


@pytest.fixture(scope="session", autouse=True)
def nothing_keeps_the_process() -> Iterator[None]:
    """A thread that is no daemon and never ends keeps this process after the last test: it is named
    here, since nothing is printed any more while the interpreter waits for it."""
    yield
    main = threading.main_thread()
    left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread != main]
    assert not left, f"threads that outlive the tests: {left}"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    import ray
    from image_service import KEY
    from ray.cluster_utils import Cluster

    os.environ["PE_RAY_SESSION_KEY"] = KEY  # workers have the environment that Ray started in
    cluster = Cluster()
    # One GPU in name only: what is placed on it runs, on the CPU. On any free port, or every
    # program that a test starts would wait for the agent's own one for 3 s.
    cluster.add_node(
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=1 << 30,
        dashboard_agent_listen_port=0,
    )
    ray.init(cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile` traces networks and runs traces as they are: making C++ of them takes minutes."""
    import torch

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folder of a tiny checkpoint by kind (see tiny_diffusion), written once."""
    return cache(lambda kind: save_pipeline(tmp_path_factory.mktemp(kind), kind))


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a private cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "pe_ray" / "private"


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """A small run on scikit-learn's digits, as plain values."""
    return {
        "private": {"data": "sklearn:digits", "labels": [str(digit) for digit in range(10)]},
        "generator": {"kind": "rendered_text", "image_size": 12},
        "embedder": {"kind": "pixels", "size": 6},
        "votes": {"lookahead": 1},
        "schedule": {"iterations": 2, "num_samples": 40, "degrees": [0.5, 0.25]},
        "privacy": {
            "epsilon": 1.0,
            "delta": 1e-4,
            "unit": "record",
            "label_fractions": "uniform",
        },
        "metrics": {"audit": [{"kind": "frechet"}, {"kind": "classifier"}]},
        "resources": {"num_cpus": 2, "workers": 1},
        "output": {"path": str(tmp_path / "run"), "rows_per_part": 17},
    }


@pytest.fixture
def short(tree: dict[str, Any]) -> dict[str, Any]:
    """The small run with one iteration, where a second one shows nothing further."""
    tree["schedule"] |= {"iterations": 1, "degrees": 0.5}
    return tree


@pytest.fixture(scope="session")
def packs() -> Path:
    """Folder of real data sets: PE_RAY_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("PE_RAY_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.exists():
        pytest.skip(f"{folder} has no data sets; set PE_RAY_DATA")
    return folder

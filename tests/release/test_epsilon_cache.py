"""An epsilon that was computed before is found again by what it was computed from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pe_ray.release.epsilon_cache import recall_epsilon
from pe_ray.values import Release

RELEASES = [Release(key="votes/0001", kind="votes", iteration=1, sigma=3.0, votes_per_unit=1)]


class Counter:
    """Computes another number at each call."""

    calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return self.calls / 3


@pytest.fixture
def folder(private_cache: Path) -> Path:
    return private_cache.parent / "epsilon"


def test_it_is_computed_once_for_the_same_entries(folder: Path) -> None:
    compute = Counter()
    assert [recall_epsilon("fixed", RELEASES, 1e-5, compute) for _ in range(2)] == [1 / 3] * 2
    assert folder.stat().st_mode & 0o777 == 0o700
    more = [*RELEASES, Release(key="b", kind="votes", iteration=2, sigma=3.0, votes_per_unit=1)]
    for accounting, releases, delta in (
        ("adaptive", RELEASES, 1e-5),
        ("fixed", RELEASES, 1.1e-5),
        ("fixed", more, 1e-5),
        ("fixed", more[1:], 1e-5),
    ):
        calls = compute.calls
        recall_epsilon(accounting, releases, delta, compute)
        assert compute.calls == calls + 1
    assert recall_epsilon("fixed", [], 1e-5, lambda: float("inf")) == float("inf")
    assert recall_epsilon("fixed", [], 1e-5, compute) == float("inf")


def test_a_damaged_file_is_not_believed(folder: Path) -> None:
    compute = Counter()
    recall_epsilon("fixed", RELEASES, 1e-5, compute)
    (file,) = folder.iterdir()
    for content in (file.read_text().replace("0x", "1x"), "", "0x1.0p-1", "0x1.0p-1 0"):
        file.write_text(content)
        calls = compute.calls
        assert recall_epsilon("fixed", RELEASES, 1e-5, compute) == compute.calls / 3
        assert compute.calls == calls + 1


def test_a_folder_that_others_may_write_to_is_not_used(folder: Path) -> None:
    compute = Counter()
    folder.mkdir(parents=True, mode=0o700)
    folder.chmod(0o770)
    assert [recall_epsilon("fixed", RELEASES, 1e-5, compute) for _ in range(2)] == [1 / 3, 2 / 3]
    assert not list(folder.iterdir())

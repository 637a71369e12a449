"""Worker and disk faults: what is left is what an undisturbed run makes of the same releases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from faulty import MortalAggregator, arm, faulty_task, taken
from undisturbed import assert_undisturbed, with_faults

from pe_ray import Config, FaultError, InputError, evolution, evolve
from pe_ray.private import sums, votes
from pe_ray.release import door

pytestmark = pytest.mark.slow

LABELS, SEARCH, SUMS = votes._count_labels, votes._count_partitions, sums._sum_partition


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    return tmp_path / "faults"


@pytest.fixture
def tree(tree: dict[str, Any], faults: Path) -> dict[str, Any]:
    return with_faults(tree, faults)


@pytest.mark.parametrize("gpus", [0, 0.5])
def test_killed_generator_workers(
    ray_session: None, tree: dict[str, Any], faults: Path, gpus: float
) -> None:
    """Tasks on CPUs, actors on a GPU (in name); more deaths than Ray makes up for by itself."""
    tree["resources"]["gpus_per_worker"] = gpus
    arm(faults / "generator", *(f"kill-{number}" for number in range(5)))
    evolve(Config.from_dict(tree))
    assert taken(faults / "generator") == 5
    assert_undisturbed(tree)


def test_a_generator_that_always_dies_is_one_line(
    ray_session: None, tree: dict[str, Any], faults: Path
) -> None:
    arm(faults / "generator", *(f"kill-{number:03d}" for number in range(60)))
    with pytest.raises(
        FaultError, match=r"population 0: workers died or hung, 3 times .* continues"
    ):
        evolve(Config.from_dict(tree))
    assert taken(faults / "generator") < 60
    shutil.rmtree(faults)
    evolve(Config.from_dict(tree))
    assert_undisturbed(tree)


def test_killed_embedding_workers(
    ray_session: None, tree: dict[str, Any], faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of private records, and then of the population (S_0 is made without the embedding beside)."""
    arm(faults / "embedder", "kill-1", "kill-2")
    monkeypatch.setattr(door.Door, "awaits_votes", lambda *_: False)
    opened = door.private_records.open_records

    def then_armed(*arguments: Any, **named: Any) -> Any:
        records = opened(*arguments, **named)
        assert taken(faults / "embedder") == 2
        arm(faults / "embedder", "kill-3", "kill-4")
        return records

    monkeypatch.setattr(door.private_records, "open_records", then_armed)
    evolve(Config.from_dict(tree))
    assert taken(faults / "embedder") == 4
    monkeypatch.undo()
    assert_undisturbed(tree)


def test_killed_search_tasks(
    ray_session: None, tree: dict[str, Any], faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm(faults / "search", "kill-1", "kill-2", "kill-3")
    monkeypatch.setattr(votes, "_count_partitions", faulty_task(SEARCH, faults / "search"))
    evolve(Config.from_dict(tree))
    assert taken(faults / "search") == 3
    assert_undisturbed(tree)


def test_a_search_that_always_dies_is_one_line_and_charges_once(
    ray_session: None, tree: dict[str, Any], faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm(faults / "search", *(f"kill-{number:03d}" for number in range(60)))
    monkeypatch.setattr(votes, "_count_partitions", faulty_task(SEARCH, faults / "search"))
    with pytest.raises(FaultError, match=r"votes/0001: what it adds up was lost .* continues"):
        evolve(Config.from_dict(tree))
    shutil.rmtree(faults)
    evolve(Config.from_dict(tree))
    assert_undisturbed(tree)


PLACES = ["before reserve", "after reserve", "while drawing", "before commit", "after commit"]


def test_the_aggregator_killed_at_every_step_of_a_release(
    ray_session: None, tree: dict[str, Any], faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies five times in each of two releases; each is charged once and stored once."""
    import ray

    def mortal(ledger_path: Path) -> Any:
        actor = ray.remote(MortalAggregator)
        options = actor.options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        return options.remote(ledger_path, faults)

    cast = door.cast_votes

    def armed(*arguments: Any) -> Any:
        for place in PLACES:
            arm(faults / place, f"kill-{taken(faults / place)}")
        return cast(*arguments)

    monkeypatch.setattr(door, "create_aggregator", mortal)
    monkeypatch.setattr(door, "cast_votes", armed)
    evolve(Config.from_dict(tree))
    assert [taken(faults / place) for place in PLACES] == [2] * len(PLACES)
    monkeypatch.undo()
    assert_undisturbed(tree)


@pytest.mark.parametrize("gpus", [0, 0.5])
def test_workers_that_hang_are_ended(
    ray_session: None,
    tree: dict[str, Any],
    faults: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: float,
) -> None:
    """A generator, an embedder of private records and what counts and sums them never return."""
    tree["resources"] |= {"gpus_per_worker": gpus, "stall_seconds": 10}
    tree["privacy"]["label_fractions"] = "dp"
    tree["teacher"] = {"features": 4, "epochs": 1}
    victims = ("generator", "embedder", "labels", "search", "sums")
    for victim in victims:
        arm(faults / victim, "hang-1")
    monkeypatch.setattr(votes, "_count_labels", faulty_task(LABELS, faults / "labels"))
    monkeypatch.setattr(votes, "_count_partitions", faulty_task(SEARCH, faults / "search"))
    monkeypatch.setattr(sums, "_sum_partition", faulty_task(SUMS, faults / "sums"))
    started = time.monotonic()
    evolve(Config.from_dict(tree))
    assert time.monotonic() - started >= 50
    assert [taken(faults / victim) for victim in victims] == [1] * len(victims)
    assert_undisturbed(tree)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB: a tmpfs, which needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk, since mount is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("spare", [2, 40, 200])
def test_a_full_disk_is_one_line_and_the_run_continues(
    ray_session: None,
    tree: dict[str, Any],
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    spare: int,
) -> None:
    """spare: KiB left free: for no ledger, for not all parts of S_0, for not all of the run."""
    tree["output"]["path"] = str(small_disk / "run")
    monkeypatch.setattr(evolution, "require_disk", lambda *_: None)  # it would refuse
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((2048 - spare) << 10))
    with pytest.raises(
        InputError, match=r"(no space left|is full).* the same command continues"
    ) as error:
        evolve(Config.from_dict(tree))
    assert len(str(error.value).splitlines()) == 1
    ballast.unlink()
    evolve(Config.from_dict(tree))
    assert_undisturbed(tree)


def test_a_full_private_cache_is_one_line(
    ray_session: None, tree: dict[str, Any], small_disk: Path, tmp_path: Path
) -> None:
    """Digits themselves are not cached: these are the same in a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images * 15).astype(np.uint8)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(grey))
    labels = [str(label) for label in digits.target]
    pq.write_table(pa.table({"image": column, "label": labels}), tmp_path / "digits.parquet")
    cache = small_disk / "cache"
    tree["private"] |= {"data": str(tmp_path / "digits.parquet"), "cache": str(cache)}
    (small_disk / "ballast").write_bytes(bytes(2016 << 10))
    with pytest.raises(InputError, match=r"private.cache: .* can't be written \(No space left"):
        evolve(Config.from_dict(tree))
    assert not [file for file in cache.iterdir() if file.stat().st_size < 10_000]


def test_a_full_disk_under_ray_is_one_line(
    tree: dict[str, Any], small_disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    short = Path(tempfile.mkdtemp(dir="/tmp")) / "d"  # sockets need a short path
    short.symlink_to(small_disk)
    (small_disk / "ballast").write_bytes(bytes(2040 << 10))
    done = subprocess.run(
        [sys.executable, "-m", "pe_ray", "run", str(tmp_path / "config.yaml")],
        env=os.environ | {"RAY_TMPDIR": str(short)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1].startswith("pe-ray: TMPDIR: no space left")

"""Faults, injected for real: what is left is what an undisturbed run makes of the same releases."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from faulty import MortalAggregator, arm, faulty_count, taken
from real_cluster import REPOSITORY, RealCluster, printed, real_cluster

from pe_ray import Config, FaultError, InputError, door, evolution, evolve
from pe_ray.private import votes
from pe_ray.release.ledger import Ledger
from pe_ray.synthetic.writer import MANIFEST

pytestmark = pytest.mark.slow

LABEL = "records=private"


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    return tmp_path / "faults"


@pytest.fixture
def tree(tree: dict[str, Any], faults: Path) -> dict[str, Any]:
    tree["generator"] |= {"kind": "faulty:FaultyText", "faults": str(faults / "generator")}
    tree["embedder"] |= {"kind": "faulty:FaultyPixels", "faults": str(faults / "embedder")}
    tree["schedule"]["num_samples"] = 60
    tree["output"]["rows_per_part"] = 8
    return tree


def content(run: Path) -> dict[str, bytes]:
    """What a run leaves, but for times: populations, histograms, final set."""
    found = {}
    for folder in ("populations", "histograms", "synthetic"):
        files = (file for file in (run / folder).rglob("*") if file.is_file())
        found |= {str(file.relative_to(run)): _untimed(file) for file in files}
    return found


def _untimed(file: Path) -> bytes:
    held = file.read_bytes()
    if file.name != MANIFEST:
        return held
    return json.dumps(json.loads(held) | {"seconds": None, "rows_made": None}).encode()


def charged(run: Path) -> list[tuple[Any, ...]]:
    """The ledger's releases, each with its histogram."""
    ledger = Ledger.open(run / "ledger.sqlite")
    listed = []
    for entry in ledger.entries():
        histogram = ledger.released(entry.release.key)
        noisy = None if histogram is None else histogram.noisy_votes.tobytes()
        listed.append((entry.release, entry.state, noisy))
    return listed


def assert_undisturbed(
    tree: dict[str, Any], again: Callable[[], object] | None = None
) -> dict[str, bytes]:
    """Everything but the ledger is made again, without faults, and is the same; nothing is charged.

    The ledger has each planned release once, committed.
    """
    run = Path(tree["output"]["path"])
    config = Config.from_dict(tree)
    disturbed, releases = content(run), charged(run)
    assert [release for release, *_ in releases] == list(evolution.planned_releases(config))
    assert {state for _, state, _ in releases} == {"committed"}
    kept = run.with_name("kept.sqlite")
    shutil.copy(run / "ledger.sqlite", kept)
    shutil.rmtree(run)
    run.mkdir()
    shutil.copy(kept, run / "ledger.sqlite")
    (again or (lambda: evolve(config)))()
    assert content(run) == disturbed
    assert charged(run) == releases
    return disturbed


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
    monkeypatch.setattr(door.Door, "embedding", lambda *_: None)
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
    monkeypatch.setattr(votes, "_count_partitions", faulty_count(faults / "search"))
    evolve(Config.from_dict(tree))
    assert taken(faults / "search") == 3
    assert_undisturbed(tree)


def test_a_search_that_always_dies_is_one_line_and_charges_once(
    ray_session: None, tree: dict[str, Any], faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm(faults / "search", *(f"kill-{number:03d}" for number in range(60)))
    monkeypatch.setattr(votes, "_count_partitions", faulty_count(faults / "search"))
    with pytest.raises(FaultError, match=r"release votes/0001: its votes were lost .* continues"):
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
    """A generator, an embedder of private records and a search, which never return."""
    tree["resources"] |= {"gpus_per_worker": gpus, "stall_seconds": 10}
    for victim in ("generator", "embedder", "search"):
        arm(faults / victim, "hang-1")
    monkeypatch.setattr(votes, "_count_partitions", faulty_count(faults / "search"))
    started = time.monotonic()
    evolve(Config.from_dict(tree))
    assert time.monotonic() - started >= 30
    assert [taken(faults / victim) for victim in ("generator", "embedder", "search")] == [1, 1, 1]
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
    with pytest.raises(InputError, match=r"no space left .* the same command continues") as error:
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


# Whole programs, killed from outside.


def command(tree: dict[str, Any], folder: Path, *more: str) -> list[str]:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return [sys.executable, "-m", "pe_ray", "run", str(file), *more]


def environment() -> dict[str, str]:
    paths = [str(REPOSITORY), str(REPOSITORY / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    for _ in range(6000):
        if condition():
            return
        assert process is None or process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    raise AssertionError("waited for five minutes in vain")


def parts(tree: dict[str, Any], iteration: int) -> list[Path]:
    folder = Path(tree["output"]["path"], "populations", f"iter={iteration:04d}")
    return list(folder.glob("part-*"))


def start(arguments: list[str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        env=environment() | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_driver_killed_amid_a_stage_and_one_too_many(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    """While it runs, the same command is refused in one line; once killed, it goes on at once.

    It is stopped meanwhile, lest it end before the other has started.
    """
    tree["schedule"] |= {"iterations": 1, "degrees": [0.5]}
    tree["generator"]["pause"] = 0.3
    run = command(tree, tmp_path)
    first = start(run)
    wait_for(lambda: parts(tree, 1), first)
    first.send_signal(signal.SIGSTOP)
    second = subprocess.run(run, env=environment(), capture_output=True, text=True, timeout=300)
    still_there = first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert still_there
    assert second.returncode == 2
    assert second.stderr.strip().splitlines()[-1] == (
        f"pe-ray: output.path: {tree['output']['path']} is in use by another pe-ray; "
        "wait for it or stop it"
    )
    known = parts(tree, 1)
    before = {part: part.stat().st_mtime_ns for part in known}
    again = start(run)
    assert again.wait(timeout=300) == 0, again.communicate()[1][-3000:]
    assert {part: part.stat().st_mtime_ns for part in known} == before  # nothing is made twice

    def undisturbed() -> None:
        subprocess.run(run, env=environment(), check=True, capture_output=True, timeout=300)

    assert_undisturbed(tree, undisturbed)


@pytest.fixture
def cluster() -> Iterator[RealCluster]:
    with real_cluster() as made:
        yield made


LOSING = """
import json, os, sys, threading, time
from pathlib import Path
import psutil, ray
from pe_ray import door, evolution
from pe_ray.config import Config

config, victim = Config.from_yaml(sys.argv[1]), int(sys.argv[2])
iteration = int(sys.argv[3])
ray.init(log_to_driver=False)
labels = {node["NodeID"]: node["Labels"].get("victim") for node in ray.nodes()}
seen = {}
opened = door.private_records.open_records
def watched(*arguments, **named):
    seen["records"] = opened(*arguments, **named)
    return seen["records"]
door.private_records.open_records = watched

def kill():
    folder = Path(config.output.path, "populations", f"iter={iteration:04d}")
    while not any(folder.glob("part-*")):
        time.sleep(0.02)
    refs = [piece for pieces in seen["records"].partitions for piece in pieces]
    found = ray.experimental.get_object_locations(refs)
    seen["lost"] = sum([labels[node] for node in found[ref]["node_ids"]] == ["yes"] for ref in refs)
    process = psutil.Process(victim)
    for one in [*process.children(recursive=True), process]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            pass
    seen["parts"] = len(list(folder.glob("part-*")))

thread = threading.Thread(target=kill, daemon=True)
thread.start()
evolution.evolve(config)
assert not thread.is_alive()
alive = sum(node["Alive"] for node in ray.nodes())
print(json.dumps({"lost": seen["lost"], "parts": seen["parts"], "alive": alive}))
"""


def losing(
    cluster: RealCluster, tree: dict[str, Any], folder: Path, victim: psutil.Process, iteration: int
) -> subprocess.Popen[str]:
    """A run whose driver kills a node once S_iteration has a part."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    script = [sys.executable, "-c", LOSING, str(file), str(victim.pid), str(iteration)]
    return subprocess.Popen(
        script,
        env={**cluster.environment, "RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_node_lost_with_private_blocks_and_one_added(
    cluster: RealCluster, tree: dict[str, Any], tmp_path: Path
) -> None:
    """One CPU a node. What the lost node held of the private embeddings is embedded again."""
    cluster.start_head("--num-cpus=1")
    cluster.start_worker("--num-cpus=1", f"--labels={LABEL},victim=yes")
    cluster.wait_for(2)
    victim = cluster.started[-1]
    tree["schedule"] |= {"iterations": 1, "degrees": [0.5]}
    tree["private"]["node_label"] = LABEL
    tree["resources"] = {}
    tree["generator"]["pause"] = 0.3
    run = losing(cluster, tree, tmp_path, victim, 0)
    wait_for(lambda: parts(tree, 0), run)
    cluster.start_worker("--num-cpus=1", f"--labels={LABEL}")  # in place of the one lost
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err[-3000:]
    seen = printed(out)
    assert seen["lost"] >= 1  # blocks that were nowhere else
    assert seen["parts"] < 8
    assert seen["alive"] == 2

    def undisturbed() -> None:
        address = ["--address", cluster.address, "--set", f"private.node_label={LABEL}"]
        done = cluster.run(command(tree, tmp_path, *address))
        assert done.returncode == 0, done.stderr[-3000:]

    assert_undisturbed(tree, undisturbed)


def test_actors_that_held_a_lost_node_are_not_waited_for(
    cluster: RealCluster, tree: dict[str, Any], tmp_path: Path
) -> None:
    """Each of two nodes is filled by one actor: the one lost fits nowhere."""
    cluster.start_head("--num-cpus=1", "--num-gpus=1")
    cluster.start_worker("--num-cpus=1", "--num-gpus=1", "--labels=victim=yes")
    cluster.wait_for(2)
    tree["schedule"] |= {"iterations": 1, "degrees": [0.5]}
    tree["resources"] = {"gpus_per_worker": 1, "stall_seconds": 15}
    tree["generator"]["pause"] = 0.3
    run = losing(cluster, tree, tmp_path, cluster.started[-1], 0)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err[-3000:]
    seen = printed(out)
    assert seen["parts"] < 8
    assert seen["alive"] == 1

    def undisturbed() -> None:
        done = cluster.run(command(tree, tmp_path, "--address", cluster.address))
        assert done.returncode == 0, done.stderr[-3000:]

    assert_undisturbed(tree, undisturbed)

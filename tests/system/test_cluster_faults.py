"""Driver and node faults: what is left is what an undisturbed run makes of the same releases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from real_cluster import REPOSITORY, RealCluster, printed, real_cluster
from undisturbed import assert_undisturbed, with_faults

pytestmark = pytest.mark.slow

LABEL = "records=private"


@pytest.fixture
def tree(tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return with_faults(tree, tmp_path / "faults")


def command(tree: dict[str, Any], folder: Path, *more: str) -> list[str]:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return [sys.executable, "-m", "pe_ray", "run", str(file), *more]


def environment() -> dict[str, str]:
    paths = [str(REPOSITORY), str(REPOSITORY / "tests" / "support")]
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
        f"pe-ray: output.path: {tree['output']['path']} is in use by another pe-ray, "
        f"process {first.pid}; wait for it or stop it"
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
from pe_ray import evolution
from pe_ray.release import door
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

"""A cluster of real processes: jobs, tokens, what runs where, and workers that come when asked."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from real_cluster import RAY, RealCluster, printed, real_cluster

from pe_ray.release.ledger import Ledger

LABEL = "records=private"
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # the fake provider's


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    """A head without CPUs and two workers, one of which private records may be on."""
    with real_cluster() as made:
        made.start_head("--num-cpus=0")
        made.start_worker("--num-cpus=2", f"--labels={LABEL}", '--resources={"left": 1}')
        made.wait_for(2)
        made.start_worker("--num-cpus=2", "--labels=records=public", '--resources={"right": 1}')
        made.wait_for(3)
        yield made


def written(tree: dict[str, Any], folder: Path) -> Path:
    """A configuration without noise, so that two runs of it can be compared."""
    tree["resources"] = {}
    tree["privacy"]["epsilon"] = float("inf")
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def digests(run: Path) -> dict[str, str]:
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(run.glob("*/**/*.parquet"))
    }


@pytest.mark.slow
def test_a_job_and_a_driver_make_the_same_run(
    cluster: RealCluster, tree: dict[str, Any], tmp_path: Path
) -> None:
    config = written(tree, tmp_path)
    submit = [RAY, "job", "submit", "--address", cluster.job_server, "--submission-id", "first"]
    job = cluster.run([*submit, "--", "python", "-m", "pe_ray", "run", str(config)])
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    assert "stage=final_set state=done rows=40" in job.stdout  # logs are followed
    assert "(from the ledger)" in job.stdout
    run = Path(tree["output"]["path"])
    assert len(Ledger.open(run / "ledger.sqlite").entries()) == 2
    logs = cluster.run([RAY, "job", "logs", "--address", cluster.job_server, "first"])
    assert "stage=votes iteration=2 state=released" in logs.stdout
    again = [sys.executable, "-m", "pe_ray", "run", str(config), "--address", cluster.address]
    other = tmp_path / "other"
    driver = cluster.run([*again, "--set", f"output.path={other}"])
    assert driver.returncode == 0, driver.stderr[-3000:]
    assert digests(other) == digests(run) != {}


@pytest.mark.slow
def test_another_token_is_refused_in_one_line(
    cluster: RealCluster, tree: dict[str, Any], tmp_path: Path
) -> None:
    config = written(tree, tmp_path)
    command = [sys.executable, "-m", "pe_ray", "run", str(config), "--address", cluster.address]
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    done = cluster.run(command, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert done.returncode == 2, done.stderr[-2000:]
    assert "that takes this token" in done.stderr.strip().splitlines()[-1]
    done = cluster.run(command, RAY_AUTH_TOKEN_PATH=str(tmp_path / "absent"))
    assert done.returncode == 2
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr.strip().splitlines()[-1]
    submit = [RAY, "job", "submit", "--address", cluster.job_server, "--", "true"]
    assert cluster.run(submit, RAY_AUTH_TOKEN_PATH=str(wrong)).returncode != 0
    assert not Ledger.open(Path(tree["output"]["path"], "ledger.sqlite")).charged


WHERE = """
import json, sys, time
import ray
from pe_ray import evolution
from pe_ray.release import door
from pe_ray.config import Config
from ray.util.state import list_tasks

ray.init(log_to_driver=False)
kept = []
cast = door.cast_votes
def watched(records, *arguments):
    kept.append(records)
    return cast(records, *arguments)
door.cast_votes = watched
evolution.evolve(Config.from_yaml(sys.argv[1]))
refs = [ref for pieces in kept[-1].partitions for ref in pieces]
found = ray.experimental.get_object_locations(refs)
time.sleep(3)  # task events are reported now and then
labels = {node["NodeID"]: node["Labels"].get("records") for node in ray.nodes()}
mine = ray.get_runtime_context().get_job_id()
tasks = list_tasks(address=sys.argv[2], detail=True, limit=1000, filters=[("job_id", "=", mine)])
print(json.dumps({
    "objects": [[labels[node] for node in found[ref]["node_ids"]] for ref in refs],
    "tasks": sorted({(task.name, str(labels.get(task.node_id))) for task in tasks if task.node_id}),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("label", [LABEL, None])
def test_private_records_are_on_labelled_nodes_only(
    cluster: RealCluster, tree: dict[str, Any], tmp_path: Path, label: str | None
) -> None:
    rng = np.random.default_rng(0)
    for name in tree["private"]["labels"] * 4:  # files of one size, whose contents are compared
        file = tmp_path / "data" / name / f"{rng.integers(2**32)}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    tree["private"]["data"] = str(tmp_path / "data")
    tree["privacy"]["label_fractions"] = "dp"
    tree["private"]["node_label"] = label
    config = written(tree, tmp_path)
    seen = printed(cluster.python(WHERE, str(config), cluster.job_server))
    places: dict[str, set[str]] = {}
    for name, place in seen["tasks"]:
        places.setdefault(name, set()).add(place)
    reading = ("_look", "digest_files", "_group_files", "_embed_task", "_find_missing")
    private = (*reading, "_count_labels", "_count_partitions")
    if label is None:  # the test can tell: nothing keeps them there otherwise
        assert any(places[name] != {"private"} for name in private[1:])
        assert [] in seen["objects"]
        return
    assert {name: places[name] for name in private} == {name: {"private"} for name in private}
    assert seen["objects"]
    assert all(nodes == ["private"] for nodes in seen["objects"])
    assert "None" in places["Aggregator.release"]  # the head, where the ledger is
    tree["private"]["node_label"] = "records=elsewhere"
    tree["output"]["path"] = str(tmp_path / "other")  # a finished one needs no cluster
    again = [sys.executable, "-m", "pe_ray", "run", str(written(tree, tmp_path))]
    done = cluster.run([*again, "--address", cluster.address])
    assert done.returncode == 2
    assert "no node of the cluster is labelled records=elsewhere" in done.stderr


AUTOSCALER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"

GROW = """
import json, sys, time
import ray
from pe_ray import Config, evolve

ray.init(log_to_driver=False)
def workers():
    return sum(n["Alive"] and n["Resources"].get("GPU", 0) for n in ray.nodes())
seen = [workers()]
evolve(Config.from_yaml(sys.argv[1]))
seen.append(workers())
for _ in range(600):
    if workers() == 0:
        break
    time.sleep(0.1)
print(json.dumps([*seen, workers()]))
"""


@pytest.mark.slow
def test_workers_come_from_none_and_go_again(tree: dict[str, Any], tmp_path: Path) -> None:
    """Ray's own autoscaler; its fake provider starts real nodes on this machine."""
    with real_cluster() as cluster:
        scaling = {
            "cluster_name": "fake",
            "max_workers": 2,
            "idle_timeout_minutes": 0.05,
            "provider": {
                "type": "external",
                "module": AUTOSCALER,
                "gcs_address": cluster.address,
                "head_node_id": HEAD,
                "launch_multiple": True,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "file_mounts": {},
            "cluster_synced_files": [],
            "upscaling_speed": 1.0,
            "auth": {},
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "initialization_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "gpu": {
                    "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 100_000_000},
                    "labels": {"records": "private"},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": 2,
                },
            },
        }
        (cluster.home / "scaling.json").write_text(json.dumps(scaling))
        cluster.start_head(
            "--num-cpus=0",
            f"--autoscaling-config={cluster.home / 'scaling.json'}",
            environment={
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": HEAD,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            },
        )
        cluster.wait_for(1)
        tree["private"]["node_label"] = LABEL
        config = written(tree, tmp_path)
        tree["resources"] = {"workers": 2, "gpus_per_worker": 1}
        config.write_text(yaml.safe_dump(tree))
        before, during, after = printed(cluster.python(GROW, str(config)))
        assert before == 0
        assert during >= 1
        assert after == 0
    assert len(Ledger.open(Path(tree["output"]["path"], "ledger.sqlite")).entries()) == 2

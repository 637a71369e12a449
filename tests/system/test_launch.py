"""cluster.yaml and the Kubernetes manifests: valid by their schemas, and closed to the outside.

No cloud and no Kubernetes is reached: what can't be checked without them is said in
docs/cluster.md.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFESTS = REPOSITORY / "pipelines" / "kubernetes"
SCHEMA = json.loads((REPOSITORY / "tests" / "data" / "kuberay.schema.json").read_text())


@pytest.fixture
def cluster() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    return tree


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` reads it: filled in from Ray's defaults for AWS and checked by its schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole: dict[str, Any] = prepare_config(copy.deepcopy(cluster))
    validate_config(whole)
    return whole


def test_ray_up_takes_the_cluster(cluster: dict[str, Any]) -> None:
    whole = prepared(cluster)
    types = whole["available_node_types"]
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "GPU" not in types["head"]["resources"]
    disk = types["head"]["node_config"]["BlockDeviceMappings"][0]["Ebs"]
    assert disk["DeleteOnTermination"] is False
    assert disk["Encrypted"] is True
    for commands in (whole["head_setup_commands"], whole["worker_setup_commands"]):
        assert any("requirements.txt" in command for command in commands)
    cluster["available_node_types"]["gpu"]["max_wrokers"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        prepared(cluster)


def test_the_cluster_is_closed_to_the_outside(cluster: dict[str, Any]) -> None:
    whole = prepared(cluster)
    starts = [c for c in whole["head_start_ray_commands"] if "ray start" in c]
    assert all("--dashboard-host=127.0.0.1" in command for command in starts)
    starts += [c for c in whole["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "security_group" not in whole["provider"]  # Ray's own: SSH, and the cluster's machines
    assert "~/.ray/auth_token" in whole["file_mounts"]


def resources(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "loader.yaml"])
def test_the_manifests_fit_their_schemas(name: str) -> None:
    """The custom resources against the fields that KubeRay documents (no registry here has its
    CRD), whatever is Kubernetes' own against the schema of Kubernetes.
    """
    for resource in resources(name):
        if resource["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(resource, "1.32", strict=True)
            continue
        jsonschema.validate(resource, SCHEMA)
        spec = resource["spec"]
        groups = (
            [spec["headGroupSpec"], *spec["workerGroupSpecs"]] if "headGroupSpec" in spec else []
        )
        for group in groups:
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
            kubernetes_validate.validate(pod | group["template"], "1.32", strict=True)
        wrong = copy.deepcopy(resource)
        wrong["spec"]["headGruopSpec"] = {}
        with pytest.raises(jsonschema.ValidationError, match="headGruopSpec"):
            jsonschema.validate(wrong, SCHEMA)


def test_the_manifests_are_closed_to_the_outside() -> None:
    cluster, *claims = resources("raycluster.yaml")
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["enableIngress"] is False
    assert spec["workerGroupSpecs"][0]["minReplicas"] == 0
    (job,) = resources("rayjob.yaml")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    wanted = {
        volume["persistentVolumeClaim"]["claimName"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
        for volume in group["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert wanted == {claim["metadata"]["name"] for claim in claims}


def test_only_the_loader_writes_private_records_and_only_workers_read_them() -> None:
    def mounts(pod: dict[str, Any]) -> list[dict[str, Any]]:
        (container,) = pod["spec"]["containers"]
        return [mount for mount in container["volumeMounts"] if "private" in mount["mountPath"]]

    (cluster, *_), (loader,) = resources("raycluster.yaml"), resources("loader.yaml")
    (workers,) = cluster["spec"]["workerGroupSpecs"]
    assert mounts(cluster["spec"]["headGroupSpec"]["template"]) == []
    assert [mount["readOnly"] for mount in mounts(workers["template"])] == [True]
    assert workers["labels"] == {"records": "private"}
    assert [mount.get("readOnly", False) for mount in mounts(loader)] == [False]
    (job,) = resources("rayjob.yaml")
    assert "private.node_label=records=private" in job["spec"]["entrypoint"]


def test_one_version_of_ray_everywhere() -> None:
    (pinned,) = [
        line.rpartition("==")[2]
        for line in (REPOSITORY / "requirements.txt").read_text().splitlines()
        if line.startswith("ray==")
    ]
    assert resources("raycluster.yaml")[0]["spec"]["rayVersion"] == pinned
    assert f"rayproject/ray:{pinned}-" in (MANIFESTS / "Dockerfile").read_text()

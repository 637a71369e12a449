"""`check` reports all that would stop a run and leaves no trace; `plan` says what is read."""

from __future__ import annotations

import json
import stat
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from mixed_images import GOOD, save_bad, save_good
from real_cluster import printed, real_cluster
from tiny_public import save_public

from pe_ray import cli
from pe_ray.release.ledger import Ledger

Printed = pytest.CaptureFixture[str]
KEYS = {"well", "num_faults", "data", "checks", "not_checked"}
DATA_KEYS = {
    *("field", "files", "passed_over", "summary", "records", "labels", "users", "sizes"),
    *("num_sizes", "modes", "faults", "num_faults", "duplicates", "num_duplicates"),
}
"""Scripts rely on these keys."""


@pytest.fixture
def folder(tree: dict[str, Any], tmp_path: Path) -> Path:
    """Private images of many kinds, all of them good, in the run's configuration."""
    save_good(tmp_path / "data")
    tree["private"] = {"data": str(tmp_path / "data"), "labels": ["cat", "dog"]}
    tree["generator"] = {"kind": "rendered_text", "image_size": 12}
    return tmp_path / "data"


def write(tree: Mapping[str, Any], place: Path) -> str:
    (place / "config.yaml").write_text(yaml.safe_dump(dict(tree)))
    return str(place / "config.yaml")


def state(place: Path) -> dict[str, tuple[int, bytes]]:
    """All files and folders below, with their times and contents."""
    return {
        str(path.relative_to(place)): (
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(place.rglob("*"))
    }


def check(tree: Mapping[str, Any], place: Path, capsys: Printed) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a check, which leaves everything as it is."""
    config, before = write(tree, place), state(place)
    capsys.readouterr()
    status = cli.main(["check", config, "--json"])
    read = capsys.readouterr()
    assert state(place) == before
    assert read.err.startswith("PRIVATE")
    return status, json.loads(read.out)


def faults(found: Mapping[str, Any]) -> str:
    return "\n".join(check["fault"] for check in found["checks"] if check["fault"])


def test_a_good_configuration_is_counted_and_nothing_is_made(
    ray_session: None, tree: dict[str, Any], folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    save_public(tmp_path / "public", ["cat", "dog"], each=4)
    public = {"data": str(tmp_path / "public"), "metrics": ["classifier"]}
    tree["metrics"]["public"] = public
    (folder / "notes.txt").write_text("no data")
    tree["resources"]["gpus_per_worker"] = 0.5
    status, found = check(tree, tmp_path, capsys)
    assert status == 0, found
    assert set(found) >= KEYS
    assert (found["well"], found["num_faults"], found["not_checked"]) == (True, 0, [])
    private, reference = found["data"]
    assert set(private) >= DATA_KEYS
    assert private["field"] == "private.data"
    assert private["labels"] == Counter(name.partition("/")[0] for name in GOOD)
    assert private["files"] == len(GOOD)
    assert private["passed_over"] == {"neither images nor tables": 1}
    assert reference["field"] == "metrics.public.data"
    assert reference["labels"] == {"cat": 4, "dog": 4}
    assert reference["sizes"] == [[16, 16, 8]]
    made = {check["what"] for check in found["checks"]}
    assert made >= {"Ray", "output.path", "disk", "private.cache", "generator rendered_text"}
    assert not Path(tree["output"]["path"]).exists()
    assert not (tmp_path / "xdg").exists()


def test_all_bad_files_are_printed_and_nothing_is_made(
    ray_session: None, tree: dict[str, Any], folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    bad = save_bad(folder)
    (folder / "cat" / "twice.png").write_bytes((folder / "cat" / "plain.png").read_bytes())
    config, before = write(tree, tmp_path), state(tmp_path)
    assert cli.main(["check", config]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("bad ")]
    assert len(lines) == len(bad) + 1
    for name in bad:
        assert any(f" {folder / name}: " in line for line in lines), name
    assert any("twice.png" in line and "plain.png" in line for line in lines)
    assert err.splitlines()[-1].startswith("pe-ray: check: 10 ")
    assert state(tmp_path) == before


def test_every_check_is_made(
    ray_session: None, tree: dict[str, Any], folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o755)
    save_bad(folder)
    (tmp_path / "file").touch()
    tree["private"]["cache"] = str(cache)
    tree["output"]["path"] = str(tmp_path / "file" / "run")
    tree["generator"]["fonts"] = str(tmp_path / "absent")
    tree["embedder"] = {"kind": "inception", "weights": str(tmp_path / "none.pt")}
    tree["metrics"]["public"] = {"data": str(tmp_path / "nowhere"), "metrics": ["classifier"]}
    status, found = check(tree, tmp_path, capsys)
    assert status == 2
    told = faults(found)
    fields = ("private.cache", "output.path", "generator.fonts", "metrics.public.data")
    for field in (*fields, "embedder.weights"):
        assert f"{field}: " in told, field
    assert found["data"][0]["num_faults"] == 9
    assert found["num_faults"] == 9 + len(told.splitlines())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"resources": {"gpus_per_worker": 64}}, "resources: "),
        ({"private": {"node_label": "records=here"}}, "private.node_label: "),
    ],
)
def test_without_ray_the_other_checks_are_made(
    ray_session: None,
    tree: dict[str, Any],
    folder: Path,
    tmp_path: Path,
    capsys: Printed,
    change: dict[str, Any],
    field: str,
) -> None:
    (tmp_path / "run").touch()
    for block, values in change.items():
        tree[block] |= values
    status, found = check(tree, tmp_path, capsys)
    assert status == 2
    assert field in faults(found)
    assert "output.path: " in faults(found)
    assert found["not_checked"]
    assert found["data"] == []


def test_a_run_that_exists_is_accepted_and_stays_as_it_is(
    ray_session: None, short: dict[str, Any], folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    config = write(short, tmp_path)
    assert cli.main(["run", config]) == 0
    ledger = Path(short["output"]["path"], "ledger.sqlite")
    spent = Ledger.open(ledger).spent()
    status, found = check(short, tmp_path, capsys)
    assert status == 0, found
    assert Ledger.open(ledger).spent() == spent
    short["schedule"]["seed"] = 7
    status, found = check(short, tmp_path, capsys)
    assert status == 2
    assert "schedule.seed: differs" in faults(found)
    Path(short["output"]["path"]).chmod(stat.S_IRWXU | stat.S_IWOTH)
    assert "output.path: anyone" in faults(check(short, tmp_path, capsys)[1])


def test_a_search_is_checked_with_its_public_images(
    ray_session: None, tree: dict[str, Any], folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    public = save_public(tmp_path / "public", ["cat", "dog"], each=6)
    tree["privacy"]["epsilon"] = 10.0
    tree["tuning"] = {
        "strategy": "public",
        "space": {"votes.neighbors": [1, 2]},
        "objective": {
            "kind": "public",
            "metric": {"kind": "classifier"},
            "score": "accuracy_train_synthetic",
            "reference": {"data": str(public), "labels": ["cat", "dog"]},
        },
        "public_data": {"data": str(public), "labels": ["cat", "dog"]},
        "num_trials": 2,
    }
    status, found = check(tree, tmp_path, capsys)
    assert status == 0, found
    fields = ["private.data", "tuning.objective.reference.data", "tuning.public_data.data"]
    assert [read["field"] for read in found["data"]] == fields
    assert "parts of trials" in {check["what"] for check in found["checks"]}
    assert cli.main(["plan", write(tree, tmp_path), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["data"]
    assert [read["files"] for read in planned] == [len(GOOD), 12, 12]
    (public / "cat" / "more.png").write_bytes(b"none")
    status, found = check(tree, tmp_path, capsys)
    assert status == 2
    (fault,) = found["data"][1]["faults"]
    assert fault["place"] == str(public / "cat" / "more.png")


def test_public_images_of_a_generator_are_read(
    ray_session: None, tree: dict[str, Any], folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    public = save_public(tmp_path / "public", ["cat", "dog"], each=5)
    (public / "dog" / "more.png").write_bytes(b"none")
    generator = {"kind": "nearest_image", "data": str(public), "image_size": 12}
    tree["generator"] = generator | {"cache": str(tmp_path.parent / "cache")}
    tree["schedule"]["degrees"] = 2
    status, found = check(tree, tmp_path, capsys)
    assert status == 2
    (fault,) = found["data"][1]["faults"]
    assert fault["place"] == str(public / "dog" / "more.png")
    assert found["data"][1]["labels"] == {"cat": 5, "dog": 5}


def test_a_plan_says_what_is_read_and_passed_over(
    tree: dict[str, Any], folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    (folder / "cat" / ".hidden.png").write_bytes(b"none")
    (folder / "cat" / "broken.png").write_bytes(b"none")
    config = write(tree, tmp_path)
    assert cli.main(["plan", config, "--json"]) == 0
    (read,) = json.loads(capsys.readouterr().out)["data"]
    assert (read["field"], read["files"]) == ("private.data", len(GOOD) + 1)
    assert read["passed_over"] == {"hidden or temporary": 1}
    assert cli.main(["plan", config]) == 0
    out = capsys.readouterr().out
    assert f"private.data: {read['summary']}" in out
    assert ".hidden.png" in out


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("private.data=/nowhere", "private.data: "),
        ("metrics.public={data: /nowhere, metrics: [frechet]}", "metrics.public.data: "),
        ("generator={kind: nearest_image, data: /nowhere, image_size: 8}", "generator.data: "),
        ("generator.fonts=/nowhere", "generator.fonts: "),
        ("embedder={kind: inception, weights: /nowhere}", "embedder.weights: "),
    ],
)
def test_a_plan_refuses_paths_that_do_not_exist(
    tree: dict[str, Any], tmp_path: Path, capsys: Printed, change: str, field: str
) -> None:
    tree["schedule"]["degrees"] = 1
    config = write(tree, tmp_path)
    assert cli.main(["plan", config, "--set", change]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"pe-ray: {field}")
    assert "/nowhere" in error


@pytest.mark.parametrize("change", ["private.node_label=records=a", "resources.address=auto"])
def test_a_plan_says_what_it_can_not_see(
    tree: dict[str, Any], tmp_path: Path, capsys: Printed, change: str
) -> None:
    tree["private"]["data"] = "/nowhere"
    config = write(tree, tmp_path)
    assert cli.main(["plan", config, "--json", "--set", change]) == 0
    (read,) = json.loads(capsys.readouterr().out)["data"]
    assert read["files"] is None
    assert read["summary"]


WHERE = """
import json, sys, time
import ray
from ray.util.state import list_tasks
from pe_ray import cli

ray.init(log_to_driver=False)
status = cli.main(["check", sys.argv[1], "--json"])
time.sleep(3)  # task events are reported now and then
labels = {node["NodeID"]: node["Labels"].get("records") for node in ray.nodes()}
mine = ray.get_runtime_context().get_job_id()
tasks = list_tasks(address=sys.argv[2], detail=True, limit=1000, filters=[("job_id", "=", mine)])
places = sorted({(task.name, str(labels.get(task.node_id))) for task in tasks if task.node_id})
print(json.dumps({"status": status, "places": places}))
"""


@pytest.mark.slow
def test_records_are_read_on_labelled_nodes_only(
    tree: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    save_bad(folder)
    tree["private"]["node_label"] = "records=private"
    tree["resources"] = {}
    with real_cluster() as cluster:
        cluster.start_head("--num-cpus=2", "--labels=records=public")
        cluster.start_worker("--num-cpus=1", "--labels=records=private")
        cluster.wait_for(2)
        done = cluster.run(
            [sys.executable, "-c", WHERE, write(tree, tmp_path), cluster.job_server],
            RAY_ADDRESS=cluster.address,
        )
        seen = printed(done.stdout)
    assert seen["status"] == 2, done.stderr[-3000:]
    private = ("_embed_blank", "_inspect_slice", "_look", "_merge")
    assert [where for where in seen["places"] if where[0] in private] == [
        [name, "private"] for name in private
    ]

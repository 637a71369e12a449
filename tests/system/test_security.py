"""Never: code run from a file, a secret in what is published, a file that anyone can change."""

from __future__ import annotations

import ast
import os
import pickle
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from whole_slices import list_slices

from pe_ray import Config, InputError, cli
from pe_ray.private.record_embeddings import make_cache_folder
from pe_ray.release.door import open_records

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    file
    for folder in ("pe_ray", "pipelines", "benchmarks")
    for file in (REPOSITORY / folder).rglob("*.py")
)
PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def breaches(source: str) -> Iterator[str]:
    """Ways in which a module could run code that a file carries."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (name for name in names if name.split(".")[0] in PICKLERS)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            yield called
        if called == "torch.load" and given.get("weights_only") != "True":
            yield called
        if called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.hub.load"):
            yield called
        if given.get("trust_remote_code", "False") != "False":
            yield "trust_remote_code"


def test_no_module_unpickles_a_file() -> None:
    assert len(SOURCES) > 60
    assert {str(file): found for file in SOURCES if (found := [*breaches(file.read_text())])} == {}


@pytest.mark.parametrize(
    "line",
    [
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "from cloudpickle import loads",
        "import pickle",
        "yaml.load(text, yaml.Loader)",
        "Model.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_for_unpickling_finds_it(line: str) -> None:
    assert list(breaches(line))


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_private_data_with_a_pickle_in_it_are_refused_and_not_run(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    """Ray registers an Arrow type whose values are unpickled when they are read."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    made = tmp_path / "made"
    users = ArrowPythonObjectArray.from_objects([Payload(made)])
    table = pa.table({"image": [b""], "label": ["0"], "who": users})
    pq.write_table(table, tmp_path / "records.parquet")
    stored = pq.read_table(tmp_path / "records.parquet").column("who")
    assert isinstance(stored.type, pa.BaseExtensionType)  # the danger is there
    tree["private"] |= {"data": str(tmp_path / "records.parquet"), "user_column": "who"}
    with pytest.raises(InputError, match=r"private\.user_column: 'who' holds"):
        list_slices(Config.from_dict(tree).private)
    assert not made.exists()
    pickle.loads(pickle.dumps(Payload(made)))  # noqa: S301
    assert made.exists()


def test_the_default_cache_is_never_in_the_run(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "run" / ".cache"))
    config = Config.from_dict(tree)
    with pytest.raises(InputError, match=r"private\.cache: .* lies in output\.path"):
        open_records(config, config.embedder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_run_that_others_can_write_to_is_refused(
    short: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One made here is not (test_canary.py)."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(short))
    run = Path(short["output"]["path"])
    run.mkdir()
    run.chmod(0o777)
    assert cli.main(["run", str(tmp_path / "config.yaml")]) == 2
    assert "anyone can write" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_cache_that_others_can_read_is_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o755)
    tree["private"]["cache"] = str(cache)
    with pytest.raises(InputError, match=r"private\.cache: others can read"):
        make_cache_folder(Config.from_dict(tree).private)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1:1"])
def test_addresses_that_no_driver_can_join_are_refused(address: str) -> None:
    """In a process of its own, since a Ray may run in this one."""
    script = (
        "from pe_ray.runtime.cluster import connect_to_ray\n"
        "from pe_ray import ResourcesConfig\n"
        f"with connect_to_ray(ResourcesConfig(address='{address}')): pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100
    )
    last = done.stderr.strip().splitlines()[-1]
    expected = "a Ray client" if address.startswith("ray://") else "no Ray cluster at"
    assert f"InputError: resources.address: {expected}" in last


def test_a_missing_token_file_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pe_ray.runtime import cluster

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    with pytest.raises(InputError, match="RAY_AUTH_TOKEN_PATH"):
        cluster._check_token(starts_here=True)


def test_the_token_made_here_is_for_us_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pe_ray.runtime import cluster

    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster._check_token(starts_here=True)
    token = tmp_path / ".ray" / "auth_token"
    assert mode(token) == 0o600
    first = token.read_text()
    assert len(first) == 64
    cluster._check_token(starts_here=True)
    assert token.read_text() == first


SPILL = """
import sys, time
from pathlib import Path
import numpy as np
from pe_ray import ResourcesConfig
from pe_ray.runtime.cluster import connect_to_ray

with connect_to_ray(ResourcesConfig(num_cpus=1)):
    import ray
    (folder,) = Path(sys.argv[1]).glob("pe-ray-*")
    kept = [ray.put(np.full(30 << 20, number, np.uint8)) for number in range(6)]
    spilled = []
    for _ in range(300):
        spilled = [path for path in folder.rglob("*spill*/**/*") if path.is_file()]
        if spilled:
            break
        time.sleep(0.1)
    print(len(spilled), oct(folder.stat().st_mode & 0o777))
"""


def test_nobody_else_can_reach_what_a_ray_started_here_spills() -> None:
    """Spilled by a Ray whose object store holds two of six objects."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # sockets need a short path
        environment = os.environ | {
            "RAY_TMPDIR": folder,
            "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(80 << 20),
        }
        done = subprocess.run(
            [sys.executable, "-c", SPILL, folder],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    spilled, above = done.stdout.split()
    assert int(spilled) > 0
    assert above == "0o700"


@pytest.mark.parametrize(("name", "place"), [("RAY_TMPDIR", "long" * 20), ("TMPDIR", "missing")])
def test_a_folder_that_ray_cant_use_is_one_line(
    short: dict[str, Any], tmp_path: Path, name: str, place: str
) -> None:
    """Too long for a socket, or missing."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(short))
    long = tmp_path / ("long" * 20)
    long.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pe_ray", "run", str(tmp_path / "config.yaml")],
        env=os.environ | {name: str(tmp_path / place)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1].startswith(f"pe-ray: {name}: ")
    assert not [*long.iterdir()]


def test_a_home_that_cant_be_written_is_one_line(short: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(short))
    (tmp_path / "home").write_text("no folder")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-m", "pe_ray", "run", str(tmp_path / "config.yaml")],
        env=kept | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1].startswith("pe-ray: HOME: ")


def test_a_user_without_a_home_is_one_line() -> None:
    """Whom the system doesn't know either, as in containers."""
    if os.geteuid():
        pytest.skip("only root may become another user")
    script = (
        "from pe_ray.files.storage import find_cache; import os; os.setuid(54321); find_cache()"
    )
    kept = {name: os.environ[name] for name in os.environ.keys() - {"HOME", "XDG_CACHE_HOME"}}
    done = subprocess.run([sys.executable, "-c", script], env=kept, capture_output=True, text=True)
    assert "InputError: HOME: " in done.stderr.splitlines()[-1]

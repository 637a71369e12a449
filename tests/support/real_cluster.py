"""A Ray cluster of real processes on this machine: free ports, a folder of its own, a token."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def printed(out: str) -> Any:
    """The JSON that a driver printed last; Ray's warnings of lost nodes may come after it."""
    for line in reversed(out.splitlines()):
        with suppress(json.JSONDecodeError):
            return json.loads(line)
    raise AssertionError(f"no JSON in {out!r}")


_WAIT = """
import sys, time
import ray
ray.init(log_to_driver=False)
for _ in range(300):
    if sum(node["Alive"] for node in ray.nodes()) == int(sys.argv[1]):
        sys.exit()
    time.sleep(0.1)
sys.exit("nodes are missing")
"""


@dataclass
class RealCluster:
    """Started with `ray start --block`; stopped by killing what it started, and nothing else."""

    home: Path
    port: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)
    started: list[psutil.Process] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def job_server(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        """Of everything that belongs to the cluster: this checkout and its tests, and the token."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "support")]),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.home / "token"),
            "RAY_TMPDIR": str(self.home),
        }

    def start(self, arguments: Sequence[str], environment: Mapping[str, str] = {}) -> None:
        common = ["--block", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
        common += [
            f"--dashboard-agent-listen-port={free_port()}",
            "--object-store-memory=200000000",
        ]
        log = (self.home / f"log-{len(self.started)}").open("w")
        process = subprocess.Popen(
            [RAY, "start", *common, *arguments],
            env={**self.environment, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(psutil.Process(process.pid))

    def start_head(self, *arguments: str, environment: Mapping[str, str] = {}) -> None:
        self.start(
            [
                "--head",
                f"--port={self.port}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard}",
                f"--ray-client-server-port={free_port()}",
                f"--metrics-export-port={self.metrics}",
                f"--temp-dir={self.home}",
                *arguments,
            ],
            environment,
        )
        self._wait_for_head()  # a worker gives up at once

    def start_worker(self, *arguments: str) -> None:
        self.start(
            [f"--address={self.address}", f"--metrics-export-port={free_port()}", *arguments]
        )

    def run(self, command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=400,
        )

    def python(self, script: str, *arguments: str) -> str:
        """What a driver of the cluster prints."""
        done = self.run([sys.executable, "-c", script, *arguments], RAY_ADDRESS=self.address)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def wait_for(self, num_nodes: int) -> None:
        """Until so many nodes are there."""
        try:
            self.python(_WAIT, str(num_nodes))
        except AssertionError as error:
            logs = [log.read_text()[-1500:] for log in sorted(self.home.glob("log-*"))]
            raise AssertionError("\n".join([str(error), *logs])) from None

    def _wait_for_head(self) -> None:
        for _ in range(120):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.5)

    def kill(self) -> None:
        family = [child for one in self.started for child in _family(one)]
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=10)


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def real_cluster() -> Iterator[RealCluster]:
    """An empty cluster whose folder is short, since Ray's sockets are in it."""
    cluster = RealCluster(home=Path(tempfile.mkdtemp(prefix="pe-")))
    handle = os.open(cluster.home / "token", os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    try:
        yield cluster
    finally:
        cluster.kill()
        shutil.rmtree(cluster.home, ignore_errors=True)

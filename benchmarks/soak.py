"""Run under a random fault every 20 seconds, on three nodes of real processes on this machine.

    python -m benchmarks.soak [MINUTES [SEED]]

Counts what must not happen: lost or repeated rows, releases drawn twice, runs without progress.
The seed fixes kind and time of each fault; which process it hits depends on what is there.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml

from pe_ray import Config
from pe_ray.planning import plan_releases
from pe_ray.release.ledger import Ledger
from tests.support.faulty import arm
from tests.support.real_cluster import REPOSITORY, RealCluster, real_cluster

sys.path.append(str(REPOSITORY / "tests" / "support"))  # the configuration names faulty:FaultyText
EVERY = 20.0  # seconds between faults
PATIENCE = 400.0  # seconds of one run, however many starts it takes
NODE = ("--num-cpus=1",)
# Agents belong to a node, which dies with them; the aggregator and idle workers have their turn.
NOT_WORKERS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE", "ray::Aggregator")


@dataclass
class Soak:
    """Injects faults into runs and counts what was found."""

    cluster: RealCluster
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    runs: int = 0
    starts: int = 0
    hangs: int = 0
    rows: int = 0
    wrong_rows: int = 0
    releases: int = 0
    wrong_releases: int = 0
    driver: subprocess.Popen[bytes] | None = None
    folder: Path = Path()
    seen: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._kinds: dict[str, Callable[[], bool]] = {
            "worker killed": lambda: self._kill("ray::", but=NOT_WORKERS),
            "idle worker killed": lambda: self._kill("ray::IDLE"),
            "aggregator killed": lambda: self._kill("ray::Aggregator"),
            "driver killed": self._kill_driver,
            "worker hangs": self._hang,
            "node killed, another added": self._replace_node,
        }

    def fault(self) -> None:
        """Inject the next fault."""
        kind = self._random.choice(list(self._kinds))
        done = self._kinds[kind]()
        print(
            f"  {time.strftime('%H:%M:%S')} {kind}{'' if done else ': nothing to hit'}", flush=True
        )
        self.faults[kind] += done
        self.missed += not done

    def _kill(self, name: str, but: tuple[str, ...] = ()) -> bool:
        found = []
        for node in self.cluster.started:
            for process in _children(node):
                title = _title(process)
                if title.startswith(name) and not title.startswith(but or ("-",)):
                    found.append(process)
        if found:
            found[self._random.randrange(len(found))].kill()
        return bool(found)

    def _kill_driver(self) -> bool:
        if self.driver is None or self.driver.poll() is not None:
            return False
        self.driver.kill()
        return True

    def _hang(self) -> bool:
        arm(self.folder / "faults", f"hang-{time.time_ns()}")
        return True

    def _replace_node(self) -> bool:
        victim = self.cluster.started.pop(self._random.randrange(1, len(self.cluster.started)))
        for process in [*_children(victim), victim]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.cluster.start_worker(*NODE)
        return True

    def look_at_ledger(self) -> None:
        """Count histograms that changed since they were first seen."""
        path = self.folder / "run" / "ledger.sqlite"
        if not path.exists() or not path.stat().st_size:
            return
        ledger = Ledger.open(path)
        for entry in ledger.entries():
            stored = ledger.stored(entry.release.key)
            if stored is not None:
                noisy = stored.tobytes()
                self.wrong_releases += self.seen.setdefault(entry.release.key, noisy) != noisy

    def check(self, config: Config) -> None:
        """Count rows and planned releases that are not there exactly once."""
        run = self.folder / "run"
        for iteration, size in enumerate(config.schedule.sizes):
            table = pq.read_table(run / "populations" / f"iter={iteration:04d}", partitioning=None)
            ids = table.column("id").to_pylist()
            self.rows += size
            self.wrong_rows += len(set(range(size)) ^ set(ids)) + len(ids) - len(set(ids))
        final = pq.read_table(run / "synthetic", partitioning=None)
        self.rows += config.schedule.sizes[-1]
        self.wrong_rows += abs(final.num_rows - config.schedule.sizes[-1])
        planned = list(plan_releases(config))
        entries = Ledger.open(run / "ledger.sqlite").entries()
        self.releases += len(planned)
        committed = [entry.release for entry in entries if entry.state == "committed"]
        self.wrong_releases += committed != planned

    def one_run(self, folder: Path, until: float) -> None:
        """Make a run, starting it again whenever it ends early; inject faults when they are due."""
        self.folder, self.seen = folder, {}
        folder.mkdir(parents=True)
        tree = _tree(folder)
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        command = [sys.executable, "-m", "pe_ray", "run", str(folder / "config.yaml")]
        command += ["--address", self.cluster.address]
        begun = time.monotonic()
        while time.monotonic() - begun < PATIENCE:
            with (folder / "log").open("ab") as log:
                self.driver = subprocess.Popen(
                    command, env=self.cluster.environment, stdout=log, stderr=log
                )
            self.starts += 1
            while self.driver.poll() is None and time.monotonic() - begun < PATIENCE:
                if time.monotonic() >= self.next_fault and time.monotonic() < until:
                    self.fault()
                    self.look_at_ledger()
                    self.next_fault += EVERY
                time.sleep(0.2)
            if self.driver.poll() == 0:
                self.runs += 1
                self.look_at_ledger()
                self.check(Config.from_dict(tree))
                return
            code = self.driver.poll()
            if code == 2:
                sys.exit(f"refused: {(folder / 'log').read_text()[-1000:]}")
            if code not in (-9, None):
                last = (folder / "log").read_text().strip().splitlines()[-1]
                print(f"  {time.strftime('%X')} ended with {code}: {last}", flush=True)
        self.hangs += 1
        self._kill_driver()

    next_fault: float = 0.0


def _tree(folder: Path) -> dict[str, object]:
    """Return a run of about a minute on three nodes: rows of 15 ms each, in parts of 50."""
    return {
        "private": {
            "data": "sklearn:digits",
            "labels": [str(digit) for digit in range(10)],
            "cache": "none",
        },
        "generator": {
            "kind": "faulty:FaultyText",
            "image_size": 12,
            "faults": str(folder / "faults"),
            "pause": 0.75,
        },
        "embedder": {"kind": "pixels", "size": 6},
        "schedule": {"iterations": 3, "num_samples": 1000, "degrees": [0.5, 0.35, 0.25]},
        "privacy": {
            "epsilon": 1.0,
            "delta": 1e-4,
            "unit": "record",
            "label_fractions": "uniform",
        },
        "resources": {"stall_seconds": 10},
        "output": {"path": str(folder / "run"), "rows_per_part": 50},
    }


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def main(minutes: float = 30.0, seed: int = 0) -> None:
    print(f"{minutes:g} minutes, seed {seed}, {os.cpu_count()} CPUs", flush=True)
    with real_cluster() as cluster:
        cluster.start_head(*NODE)
        for number in (2, 3):
            cluster.start_worker(*NODE)
            cluster.wait_for(number)
        soak = Soak(cluster, seed)
        until = time.monotonic() + 60 * minutes
        soak.next_fault = time.monotonic() + EVERY
        while time.monotonic() < until:
            started = time.monotonic()
            soak.one_run(cluster.home / "runs" / str(soak.runs + soak.hangs), until)
            print(f"run {soak.runs}: {time.monotonic() - started:.0f} s", flush=True)
    print("\n| what | number |\n| --- | --- |")
    for kind, number in sorted(soak.faults.items()):
        print(f"| {kind} | {number} |")
    print(f"| faults that found nothing to hit | {soak.missed} |")
    print(f"| runs finished, starts that took | {soak.runs}, {soak.starts} |")
    print(f"| rows lost or repeated, of | {soak.wrong_rows}, {soak.rows} |")
    print(
        f"| releases drawn twice, missing or extra, of | {soak.wrong_releases}, {soak.releases} |"
    )
    print(f"| runs that stood still | {soak.hangs} |")
    if soak.wrong_rows or soak.wrong_releases or soak.hangs:
        sys.exit(1)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3]))

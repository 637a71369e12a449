"""Progress is visible on a terminal and in a log, and an interrupt says how to go on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pe_ray import Config, InputError, evolve
from pe_ray.runtime import progress as progress_module
from pe_ray.runtime import run_directory
from pe_ray.runtime.progress import Progress


def test_lines_give_rows_speed_and_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 1e-9)
    with caplog.at_level(logging.INFO), Progress("population 1", 1000, 200) as progress:
        time.sleep(0.01)
        progress.add(300)
        progress.add(500)
    first, *_, last = caplog.messages
    assert first.startswith("population 1: 500 of 1,000 rows, ")
    assert "rows/s" in first
    assert first.endswith(" left")
    facts = dict(pair.split("=") for pair in last.split())
    assert facts["stage"] == "population"
    assert (facts["iteration"], facts["state"]) == ("1", "done")
    assert (facts["rows"], facts["made"]) == ("1000", "800")
    assert float(facts["seconds"]) > 0
    assert float(facts["rows_per_second"]) > 0


def test_speed_and_time_left_leave_out_what_workers_load_first(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 1e-9)
    with caplog.at_level(logging.INFO), Progress("population 1", 1000, warm_up=2) as progress:
        time.sleep(0.5)
        for _ in range(3):
            progress.add(100)
            time.sleep(0.001)
    *lines, _ = caplog.messages
    assert ["? left" in line for line in lines[:3]] == [True, True, False]
    rate = float(lines[2].split(", ")[1].removesuffix("rows/s"))
    assert rate > 300 / 0.5  # which loading included can't be


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_a_terminal_gets_a_bar_unless_it_is_to_be_quiet(
    level: int,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level(level), Progress("expansion", 10) as progress:
        progress.add(10)
    assert ("expansion: 100%" in capsys.readouterr().err) == (level == logging.INFO)


@pytest.mark.slow
def test_gauges_reach_prometheus(tmp_path: Path) -> None:
    """Scraped from the endpoint of a Ray of its own, in a process of its own."""
    script = """
import socket, sys, time, urllib.request
import ray
from pe_ray.runtime.progress import Progress

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         _metrics_export_port=port)
with Progress("population 3", 1000, 200) as progress:
    progress.add(300)
    for _ in range(120):
        time.sleep(0.5)
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        except OSError:
            continue
        if "pe_ray_rows_done" in text:
            break
print("\\n".join(line for line in text.splitlines() if "pe_ray" in line))
"""
    environment = os.environ | {"RAY_metrics_report_interval_ms": "500"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scraped = {
        line.split("{")[0]: float(line.rpartition(" ")[2])
        for line in done.stdout.splitlines()
        if 'stage="population 3"' in line
    }
    assert scraped == {"ray_pe_ray_rows": 1000, "ray_pe_ray_rows_done": 500}


def _heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_an_interrupt_stops_cleanly_and_the_same_command_continues(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    """Ctrl-C amid S_0, then what a cluster's manager sends amid S_1, then to the end."""
    tree["schedule"] |= {"num_samples": 20_000}
    del tree["output"]["rows_per_part"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "pe_ray", "run", str(tmp_path / "config.yaml")]

    def made(iteration: int) -> set[Path]:
        return set(Path(tree["output"]["path"]).glob(f"populations/iter={iteration:04d}/part-*"))

    for iteration, stop in enumerate([signal.SIGINT, signal.SIGTERM]):
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heed_interrupts,
        ) as process:
            deadline = time.monotonic() + 240
            while not made(iteration) and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(stop)
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 1, errors
        assert errors.strip().splitlines()[-1] == "pe-ray: stopped; the same command continues"
        assert "Traceback" not in errors
        assert made(iteration)
    kept = {part: part.stat().st_mtime_ns for part in made(0) | made(1)}
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert kept == {part: part.stat().st_mtime_ns for part in kept}


def test_a_disk_too_small_is_one_error_before_anything_is_spent(
    ray_session: None, short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short["output"]["path"] = str(tmp_path / "other")

    class Usage:
        free = 1000

    monkeypatch.setattr(run_directory.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match=r"output\.path: .* GiB free; free some"):
        evolve(Config.from_dict(short))
    assert not (tmp_path / "other" / "ledger.sqlite").exists()

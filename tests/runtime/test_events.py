"""Events: a program and a log are told the same, and a listener sees every step of a run."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pe_ray import Config, Event, evolve
from pe_ray.runtime.events import announce, emit, listening


def test_a_listener_hears_each_step(ray_session: None, short: dict[str, Any]) -> None:
    heard: list[Event] = []
    config = Config.from_dict(short)
    evolve(config, on_event=heard.append)
    done = [event.iteration for event in heard if event.kind == "population"]
    assert done == list(range(config.schedule.iterations + 1))
    released = [event for event in heard if event.kind == "release"]
    assert [event.iteration for event in released] == list(range(1, config.schedule.iterations + 1))
    assert all(event.values["sigma"] > 0 for event in released)
    rows = [event.values["rows"] for event in heard if event.name == "final_set"]
    assert rows[-1] == config.schedule.sizes[-1]
    assert {event.kind for event in heard} == {"phase", "part", "stage", "release", "population"}


def test_a_listener_hears_its_own_block_alone() -> None:
    heard: list[Event] = []
    with listening(heard.append):
        announce("first")
    announce("second")
    assert [event.name for event in heard] == ["first"]


def test_a_line_has_the_events_values(caplog: pytest.LogCaptureFixture) -> None:
    values = {"sigma": 7.0710678, "note": "two words"}
    with caplog.at_level(logging.INFO):
        emit(Event(kind="release", name="votes", iteration=3, values=values))
        emit(Event(kind="part", name="population", values={"rows": 1}))
    expected = 'stage=votes iteration=3 state=released sigma=7.07107 note="two words"'
    assert caplog.messages == [expected]


@pytest.mark.parametrize("option", ["--quiet", pytest.param("--log-json", marks=pytest.mark.slow)])
def test_the_command_line_logs_as_it_is_told(
    tree: dict[str, Any], tmp_path: Path, option: str
) -> None:
    """Read from a program of its own, as a run that is refused at its first step tells enough."""
    tree["private"]["data"] = str(tmp_path / "missing")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "pe_ray", "run", str(tmp_path / "config.yaml"), option]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    *lines, error = done.stderr.splitlines()
    assert error.startswith("pe-ray: ")
    logged = [json.loads(line) for line in lines]
    assert [line["event"] for line in logged[:1]] == ([] if option == "--quiet" else ["phase"])


@pytest.mark.slow
def test_what_workers_print_stays_with_them() -> None:
    """Libraries quote what they read in warnings, and private tasks read private records."""
    script = """
import logging, time, ray
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.runtime.cluster import connect_to_ray
from pe_ray.runtime.events import log_to_stderr

log_to_stderr(logging.DEBUG)
with connect_to_ray(ResourcesConfig()):
    ray.get(ray.remote(lambda: print("a private value", flush=True)).remote())
    time.sleep(5)  # lines of workers take a while
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "starting Ray" in done.stderr
    assert "a private value" not in done.stdout + done.stderr

"""`make gpu`, rehearsed without a GPU: every section runs, and a failure is told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import checks, speed
from benchmarks.gpu.__main__ import SECTIONS, render, run_section
from benchmarks.gpu.section import SECTIONS as RUNNABLE
from benchmarks.gpu.tasks import Task

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def tiny() -> Task:
    return Task(deadline=time.monotonic() + 600, rehearse=True)


def test_every_section_can_be_run_within_ten_minutes() -> None:
    assert list(SECTIONS) == list(RUNNABLE)
    assert sum(limit for limit, _ in SECTIONS.values()) < 600


@pytest.mark.parametrize("section", [speed.card, speed.votes, checks.memory])
def test_a_section_is_rehearsed(section: object) -> None:
    rows = list(section(tiny()))  # type: ignore[operator]
    assert rows
    assert all(row["ok"] for row in rows)


def test_operations_of_the_large_network_are_counted_without_computing() -> None:
    options = {**speed.network_options(speed.FULL), "checkpoint": "none"}
    flops = speed.count_flops(speed.ImprovedDiffusionOptions(**options))
    assert flops == pytest.approx(178e9, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the section would not fail")
def test_a_section_that_fails_is_recorded(tmp_path: Path) -> None:
    found = run_section("card", tmp_path, rehearse=False)
    assert "no GPU" in found["failed"]
    assert "**Failed**" in render({"machine": "", "time": "", "sections": {"card": found}})


def test_the_page_is_made_from_the_result() -> None:
    file = BENCHMARKS / "gpu.json"
    result = json.loads(file.read_text()) if file.exists() else None
    assert (BENCHMARKS / "gpu.md").read_text() == render(result)


@pytest.mark.slow
def test_all_sections_are_rehearsed() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse"]
    done = subprocess.run(
        command, cwd=BENCHMARKS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""Runs that faults disturb, and the undisturbed run of the same releases that they must equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pe_ray import Config, evolution
from pe_ray.evolution import evolve
from pe_ray.files.parts import MANIFEST
from pe_ray.release.ledger import Ledger


def with_faults(tree: dict[str, Any], faults: Path) -> dict[str, Any]:
    """The run, whose generator and embedder take the faults armed below `faults`."""
    tree["generator"] |= {"kind": "faulty:FaultyText", "faults": str(faults / "generator")}
    tree["embedder"] |= {"kind": "faulty:FaultyPixels", "faults": str(faults / "embedder")}
    tree["schedule"]["num_samples"] = 60
    tree["output"]["rows_per_part"] = 8
    return tree


def content(run: Path) -> dict[str, bytes]:
    """What a run leaves, but for times: populations, histograms, final set."""
    found = {}
    for folder in ("populations", "histograms", "synthetic"):
        files = (file for file in (run / folder).rglob("*") if file.is_file())
        found |= {str(file.relative_to(run)): _untimed(file) for file in files}
    return found


def _untimed(file: Path) -> bytes:
    held = file.read_bytes()
    if file.name != MANIFEST:
        return held
    untimed = {"seconds": None, "rows_made": None, "digest": None}  # which is of these too
    return json.dumps(json.loads(held) | untimed).encode()


def charged(run: Path) -> list[tuple[Any, ...]]:
    """The ledger's releases, each with its histogram."""
    ledger = Ledger.open(run / "ledger.sqlite")
    listed = []
    for entry in ledger.entries():
        stored = ledger.stored(entry.release.key)
        noisy = None if stored is None else stored.tobytes()
        listed.append((entry.release, entry.state, noisy))
    return listed


def assert_undisturbed(
    tree: dict[str, Any], again: Callable[[], object] | None = None
) -> dict[str, bytes]:
    """Everything but the ledger is made again, without faults, and is the same; nothing is charged.

    The ledger has each planned release once, committed.
    """
    run = Path(tree["output"]["path"])
    config = Config.from_dict(tree)
    disturbed, releases = content(run), charged(run)
    assert [release for release, *_ in releases] == list(evolution.plan_releases(config))
    assert {state for _, state, _ in releases} == {"committed"}
    kept = run.with_name("kept.sqlite")
    shutil.copy(run / "ledger.sqlite", kept)
    shutil.rmtree(run)
    run.mkdir()
    shutil.copy(kept, run / "ledger.sqlite")
    (again or (lambda: evolve(config)))()
    assert content(run) == disturbed
    assert charged(run) == releases
    return disturbed

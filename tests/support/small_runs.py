"""Small runs in a folder: their configuration, and the RunContext that the loop is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pe_ray import Config
from pe_ray.files.parts import Part, write_part
from pe_ray.run_context import RunContext
from pe_ray.runtime.run_directory import on_disk
from pe_ray.runtime.workers import PartWorker
from pe_ray.synthetic.learnt_embedder import prepare_run


def small_tree(folder: Path) -> dict[str, Any]:
    """A run of one iteration and 40 samples that keeps all its files in `folder`."""
    return {
        "private": {
            "data": "sklearn:digits",
            "labels": [str(digit) for digit in range(10)],
            "cache": str(folder / "cache"),
        },
        "generator": {"kind": "rendered_text", "image_size": 12},
        "embedder": {"kind": "pixels", "size": 6},
        "schedule": {"iterations": 1, "num_samples": 40, "degrees": 0.5},
        "privacy": {"epsilon": 1.0, "delta": 1e-4, "unit": "record", "label_fractions": "uniform"},
        "resources": {"num_cpus": 2, "workers": 1},
        "output": {"path": str(folder / "run"), "rows_per_part": 17},
    }


def run_in(folder: Path, config: Config) -> RunContext:
    """The run of `config` in `folder`; an embedder that is to be learnt is learnt there."""
    return prepare_run(config, on_disk(folder))


class EmptyParts(PartWorker):
    """Makes parts without content."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)

    def make(self, request: Mapping[str, Any]) -> Part:
        return write_part(self._directory, request["start"], request["stop"], "empty", b"")

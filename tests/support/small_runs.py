"""A Run in a folder, as steps of the loop are given it."""

from __future__ import annotations

from pathlib import Path

from pe_ray import Config
from pe_ray.run import Run
from pe_ray.runtime.run_directory import on_disk
from pe_ray.synthetic.learnt_embedder import prepare_run


def run_in(folder: Path, config: Config) -> Run:
    """The run of `config` in `folder`; an embedder that is to be learnt is learnt there."""
    return prepare_run(config, on_disk(folder))

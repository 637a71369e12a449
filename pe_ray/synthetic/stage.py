"""One stage of a run: many parts, made by Ray Data workers, each written once and whole.

A part is a pure function of its request, so it may be made again anywhere at any time: a killed
actor's parts are made again by Ray, a killed driver's by the next start, which asks only for the
parts that are missing. The driver sees one small row per part.

Workers with a GPU are actors, which keep their weights for the stage. Workers without are tasks:
Ray reuses their processes from stage to stage, so plugins are loaded once per process and run,
not once per stage (starting an actor pool takes seconds).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pe_ray import plugins
from pe_ray.config import Plugin, ResourcesConfig
from pe_ray.synthetic.writer import Part, commit, manifest_of, part_name

logger = logging.getLogger(__name__)

Request = dict[str, Any]
"""What one part is made from: start, stop (rows) and whatever arrays its worker needs."""


class PartWorker:
    """Makes the requested parts, one after the other; cheap to construct but for its plugins."""

    suffix = "parquet"

    def make(self, request: Mapping[str, Any]) -> Part:
        """Make and write one part."""
        raise NotImplementedError

    def __call__(self, requests: pa.Table) -> pa.Table:
        made = [self.make(_arrays(request)) for request in requests.to_pylist()]
        return pa.Table.from_pylist([asdict(part) for part in made])


def _make_parts(
    requests: pa.Table, worker: type[PartWorker], arguments: Mapping[str, Any]
) -> pa.Table:
    return worker(**arguments)(requests)


def run_stage(
    directory: Path,
    requests: Sequence[Request],
    worker: type[PartWorker],
    arguments: Mapping[str, Any],
    resources: ResourcesConfig,
    extra: Mapping[str, Any],
) -> None:
    """Make the parts that are missing, then commit the stage; returns at once when it is done."""
    if manifest_of(directory) is not None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    made, missing = [], []
    for request in requests:
        name = part_name(request["start"], request["stop"], worker.suffix)
        file = directory / name
        if file.exists():
            size = file.stat().st_size
            part = Part(file=name, start=request["start"], stop=request["stop"], num_bytes=size)
            made.append(part)
        else:
            missing.append(request)
    if missing:
        made += _make(missing, worker, arguments, resources)
    commit(directory, made, extra)


def _make(
    requests: Sequence[Request],
    worker: type[PartWorker],
    arguments: Mapping[str, Any],
    resources: ResourcesConfig,
) -> list[Part]:
    workers = num_workers(resources)
    num_blocks = min(len(requests), 4 * workers)
    table = pa.Table.from_pylist([_lists(request) for request in requests])
    edges = np.linspace(0, len(requests), num_blocks + 1).astype(int)
    blocks = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    pool = min(workers, num_blocks)
    common = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": resources.cpus_per_worker}
    requested = ray.data.from_arrow(blocks)
    if resources.gpus_per_worker:
        made = requested.map_batches(
            worker,
            fn_constructor_kwargs=dict(arguments),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool, initial_size=pool),
            num_gpus=resources.gpus_per_worker,
            **common,
        )
    else:
        made = requested.map_batches(
            _make_parts,
            fn_kwargs={"worker": worker, "arguments": dict(arguments)},
            compute=ray.data.TaskPoolStrategy(size=pool),
            **common,
        )
    return [Part(**row) for row in made.take_all()]


_loaded: dict[plugins.PluginType, tuple[str, Any]] = {}


def loaded(plugin: Plugin, *arguments: Any) -> Any:
    """The generator or embedder `plugin`, loaded once per process.

    Only the last of each type is kept, so a process never holds two sets of weights.
    """
    key = repr((plugin.kind, plugin.options.model_dump_json(), arguments))
    if plugin.plugin_type not in _loaded or _loaded[plugin.plugin_type][0] != key:
        made = plugins.load(plugin.plugin_type, plugin.kind)(plugin.options, *arguments)
        _loaded[plugin.plugin_type] = (key, made)
    return _loaded[plugin.plugin_type][1]


def num_workers(resources: ResourcesConfig) -> int:
    """Actors the cluster holds, or `resources.workers` if that is less."""
    total = ray.cluster_resources()
    fits = total.get("CPU", 1.0) / resources.cpus_per_worker
    if resources.gpus_per_worker:
        fits = min(fits, total.get("GPU", 0.0) / resources.gpus_per_worker)
    return max(1, min(int(fits), resources.workers or int(fits)))


def _lists(request: Request) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in request.items()}


def _arrays(request: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: np.asarray(v, dtype=np.int64) if isinstance(v, list) else v for k, v in request.items()
    }

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
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pe_ray import plugins
from pe_ray.blocks import Plugin, ResourcesConfig
from pe_ray.cluster import num_workers
from pe_ray.errors import InputError
from pe_ray.progress import Progress
from pe_ray.storage import Location
from pe_ray.synthetic.writer import Part, commit, found_parts, manifest_of

_PARTS_PER_BLOCK = 4  # a block costs Ray about 12 ms, a part takes a worker 0.1 s and up

Request = dict[str, Any]
"""What one part is made from: start, stop (rows) and whatever arrays its worker needs."""


class PartWorker:
    """Makes the requested parts, one after the other; cheap to construct but for its plugins."""

    def make(self, request: Mapping[str, Any]) -> Part:
        """Make and write one part."""
        raise NotImplementedError

    def __call__(self, requests: pa.Table) -> pa.Table:
        made = [self.make(_request(requests, row)) for row in range(requests.num_rows)]
        return pa.Table.from_pylist([asdict(part) for part in made])


def _request(requests: pa.Table, row: int) -> Request:
    """One row, lists as int64 arrays."""
    cells = {name: requests.column(name)[row] for name in requests.column_names}
    return {
        name: cell.values.to_numpy(zero_copy_only=False).astype(np.int64)
        if isinstance(cell, pa.ListScalar)
        else cell.as_py()
        for name, cell in cells.items()
    }


class _Reporting:
    """A worker whose InputErrors come back as rows, since Ray Data keeps no exception's type."""

    def __init__(self, worker: type[PartWorker], arguments: Mapping[str, Any]) -> None:
        self._construct = partial(worker, **arguments)
        self._worker: PartWorker | None = None

    def __call__(self, requests: pa.Table) -> pa.Table:
        try:
            self._worker = self._worker or self._construct()
            return self._worker(requests)
        except InputError as error:
            return pa.table({"error": [str(error)]})


def _make_parts(
    requests: pa.Table, worker: type[PartWorker], arguments: Mapping[str, Any]
) -> pa.Table:
    return _Reporting(worker, arguments)(requests)


def run_stage(
    name: str,
    directory: Location,
    suffix: str,
    requests: Sequence[Request],
    worker: type[PartWorker],
    arguments: Mapping[str, Any],
    resources: ResourcesConfig,
    extra: Mapping[str, Any],
) -> None:
    """Make the parts that are missing, then commit the stage; returns at once when it is done.

    name: for the user who watches; suffix: of the parts' files; resources change speed only. The
    manifest says how many rows the start that completed the stage made, and in how many seconds;
    rows of starts before it are not timed.
    """
    if manifest_of(directory) is not None:
        return
    started, num_made = time.monotonic(), 0
    directory.mkdir(parents=True, exist_ok=True)
    ranges = [(request["start"], request["stop"]) for request in requests]
    found = found_parts(directory, ranges, suffix)
    made = [part for part in found if part is not None]
    missing = [request for request, part in zip(requests, found, strict=True) if part is None]
    if missing:
        done = sum(part.stop - part.start for part in made)
        wanted = sum(request["stop"] - request["start"] for request in missing)
        with Progress(name, done + wanted, done) as progress:
            for part in _make(missing, worker, arguments, resources):
                made.append(part)
                progress.add(part.stop - part.start)
                num_made += part.stop - part.start
    seconds = round(time.monotonic() - started, 3)
    commit(directory, made, {**extra, "rows_made": num_made, "seconds": seconds})


def _make(
    requests: Sequence[Request],
    worker: type[PartWorker],
    arguments: Mapping[str, Any],
    resources: ResourcesConfig,
) -> Iterator[Part]:
    """Parts as they are made, in any order."""
    workers = num_workers(resources)
    blocks_made = num_blocks(len(requests), workers)
    table = _table(requests)
    edges = np.linspace(0, len(requests), blocks_made + 1).astype(int)
    blocks = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    pool = min(workers, blocks_made)
    common = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": resources.cpus_per_worker}
    requested = ray.data.from_arrow(blocks)
    if resources.gpus_per_worker:
        made = requested.map_batches(
            _Reporting,
            fn_constructor_kwargs={"worker": worker, "arguments": dict(arguments)},
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
    for row in made.iter_rows():
        if row.get("error"):
            raise InputError(row["error"])
        yield Part(**{field: row[field] for field in Part.__slots__})


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


def num_blocks(num_parts: int, workers: int) -> int:
    """Blocks of a stage: enough to keep all workers busy and to show progress, none too small."""
    return min(num_parts, max(4 * workers, num_parts // _PARTS_PER_BLOCK))


def _table(requests: Sequence[Request]) -> pa.Table:
    """One row per request; arrays become lists, made without a Python object per number."""
    columns = {}
    for name, first in requests[0].items():
        values = [request[name] for request in requests]
        if isinstance(first, np.ndarray):
            offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])])
            flat = pa.array(np.concatenate(values))
            columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets), flat)
        else:
            columns[name] = pa.array(values)
    return pa.table(columns)

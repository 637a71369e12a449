"""One stage of a run: many parts, made by Ray Data workers, each written once and whole.

A part is a pure function of its request, so it may be made again anywhere at any time: a killed
actor's parts are made again by Ray, a killed driver's by the next start, which asks only for the
parts that are missing. The driver sees one small row per part.

A worker that hangs ends itself (pe_ray.runtime.watchdog). Where Ray can't make up for a loss (a
part kills its worker again and again, an actor of a lost node fits nowhere), the missing parts are
shared out again over the nodes that are left, until three times in a row no part is finished.

Workers with a GPU are actors, which keep their weights for the stage. Workers without are tasks:
Ray reuses their processes from stage to stage, so plugins are loaded once per process and run,
not once per stage (starting an actor pool takes seconds).
"""

from __future__ import annotations

import io
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from pe_ray import plugins
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.config.kinds import Plugin
from pe_ray.errors import DamagedFileError, FaultError, InputError
from pe_ray.files.parts import Part, commit, find_parts, read_manifest, remove_damaged
from pe_ray.files.storage import Location, full_disk_as_input_error
from pe_ray.runtime.cluster import num_workers, use_ray
from pe_ray.runtime.progress import Progress
from pe_ray.runtime.watchdog import LostNodes, StalledError, exit_on_stall, note_progress

if TYPE_CHECKING:
    import ray

logger = logging.getLogger(__name__)
T = TypeVar("T")

_PARTS_PER_BLOCK = 4  # a block costs Ray about 12 ms, a part takes a worker 0.1 s and up
_ATTEMPTS = 3  # in a row that finish nothing
_BLOCKS_PATIENCE = 2 * _PARTS_PER_BLOCK  # each of its parts may take stall_seconds
_DEATHS = 3  # of the workers of one part, which Ray makes up for by itself

Request = dict[str, Any]
"""What one part is made from: start, stop (rows) and whatever arrays its worker needs."""


class PartWorker:
    """Makes the requested parts. Only its plugins are costly to construct."""

    def make(self, request: Mapping[str, Any]) -> Part:
        """Make and write one part."""
        raise NotImplementedError


class RepeatedDeathError(Exception):
    """A part killed its worker each time it was begun."""


class _Attempts:
    """Counts how often each part was begun: Ray repeats what kills its worker without limit."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()

    def count(self, stage: str, start: int) -> int:
        """Count one more attempt at a part of a stage and return their number."""
        self._counts[stage, start] += 1
        return self._counts[stage, start]


@lru_cache(maxsize=1)
def _attempts_of(session: str, job: str) -> Any:
    """Start the counter of a Ray job, once: an actor is a process.

    Jobs of two Rays in one process have the same id, so the session counts too.
    """
    import ray

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()


class _PartMaker:
    """Makes a part from a table of one request, and returns a table of one row.

    InputErrors come back as rows, as Ray Data keeps no exception's type. So does a part that was
    begun too often. attempts: counts how often the part that starts at a row was begun.
    """

    def __init__(
        self,
        worker: Callable[[], PartWorker],
        stall_seconds: float,
        attempts: Callable[[int], ray.ObjectRef],
    ) -> None:
        self._construct, self._stall_seconds, self._attempts = worker, stall_seconds, attempts
        self._worker: PartWorker | None = None

    def __call__(self, requests: pa.Table) -> pa.Table:
        import ray

        request = _unpack(requests["request"][0].as_py())
        if ray.get(self._attempts(request["start"])) > _DEATHS + 1:
            return pa.table({"deaths": [_DEATHS + 1]})
        try:
            with exit_on_stall(self._stall_seconds):
                self._worker = self._worker or self._construct()
                return pa.Table.from_pylist([asdict(self._worker.make(request))])
        except DamagedFileError as error:
            return pa.table({"damaged": [error.file]})
        except InputError as error:
            return pa.table({"error": [str(error)]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Parts to be made in one directory.

    name: for the user who watches, with the iteration last where there is one. suffix: of the
    parts' files. worker: called in each worker process, makes what makes the parts. manifest: what
    the manifest says besides the parts. check_found: compare what earlier starts wrote with its
    digests, and make damaged parts again; for parts that no later stage reads with their digests.
    numbered: parts are named by the `number` of their request, which counts from 0.
    """

    name: str
    directory: Location
    suffix: str
    requests: Sequence[Request]
    worker: Callable[[], PartWorker]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    check_found: bool = False
    numbered: bool = False


def run_stage(stage: Stage, resources: ResourcesConfig) -> None:
    """Make the parts that are missing, then commit the stage; return at once when it is done.

    `resources` change speed only. The manifest says how many rows the start that completed the
    stage made, and in how many seconds. Rows of earlier starts are not timed.
    """
    if stage.check_found:
        remove_damaged(stage.directory)
    ranges = [(request["start"], request["stop"]) for request in stage.requests]
    num_rows = sum(stop - start for start, stop in ranges)
    manifest = read_manifest(stage.directory)
    if manifest is not None and manifest["num_rows"] == num_rows:  # an expansion may have grown
        return
    started = time.monotonic()
    with full_disk_as_input_error(stage.directory):
        stage.directory.mkdir(parents=True, exist_ok=True)

    def found() -> dict[int, Part]:
        parts = find_parts(stage.directory, ranges, stage.suffix, numbered=stage.numbered)
        return {part.start: part for part in parts if part is not None}

    made = found()
    before = _num_rows(made)
    if len(made) < len(ranges):
        with Progress(stage.name, num_rows, before, num_workers(resources)) as progress:
            failures = 0
            while missing := [req for req in stage.requests if req["start"] not in made]:
                try:
                    for part in _make(missing, stage.worker, resources):
                        made[part.start] = part
                        progress.add(part.stop - part.start)
                except Exception as error:
                    if not _is_fault(error):
                        raise
                    known, made = _num_rows(made), found()
                    progress.add(_num_rows(made) - known)
                    finished = len(ranges) - len(made) < len(missing)
                    failures = 0 if finished else failures + 1
                    reason = type(error).__name__
                    if failures == _ATTEMPTS:
                        raise FaultError(
                            f"{stage.name}: workers died or hung, {_ATTEMPTS} times in a row "
                            f"without finishing a part ({reason}); see Ray's logs of the workers"
                        ) from None
                    logger.warning("%s: %s; making the missing parts again", stage.name, reason)
    seconds = round(time.monotonic() - started, 3)
    timed = {"rows_made": _num_rows(made) - before, "seconds": seconds}
    commit(stage.directory, list(made.values()), {**stage.manifest, **timed})


def _num_rows(parts: Mapping[int, Part]) -> int:
    return sum(part.stop - part.start for part in parts.values())


def _is_fault(error: Exception) -> bool:
    """Tell whether something died, as opposed to an exception of the code that it ran."""
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    died = isinstance(error, ray.exceptions.RayError)
    raised = isinstance(error, ray.exceptions.RayTaskError)
    stopped = isinstance(error, StalledError | ExecutionTimeoutError | RepeatedDeathError)
    return stopped or (died and not raised)


def _pack(request: Request) -> bytes:
    """Return a request as bytes, whose arrays may have any length."""
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **request)
    return sink.getvalue()


def _unpack(content: bytes) -> Request:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {name: stored[name] if stored[name].ndim else stored[name].item() for name in stored}


def _make(
    requests: Sequence[Request], worker: Callable[[], PartWorker], resources: ResourcesConfig
) -> Iterator[Part]:
    """Yield parts as they are made, in any order."""
    ray = use_ray()
    workers, stall_seconds = num_workers(resources), resources.stall_seconds
    blocks = count_blocks(len(requests), workers)
    pool = min(workers, blocks)
    requested = ray.data.from_items(
        [{"request": _pack(request)} for request in requests],
        override_num_blocks=blocks,
    )
    context = ray.get_runtime_context()
    counter = _attempts_of(context.get_session_name(), context.get_job_id())
    attempts = partial(counter.count.remote, uuid.uuid4().hex)
    given = (worker, stall_seconds, attempts)
    common = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": resources.cpus_per_worker}
    lost = None
    if resources.gpus_per_worker:
        made = requested.map_batches(
            _PartMaker,
            fn_constructor_args=given,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool, initial_size=pool),
            num_gpus=resources.gpus_per_worker,
            **common,
        )
        lost = LostNodes(stall_seconds)
        made.context.custom_execution_callback_classes = [lost.callback()]
    else:
        make = _PartMaker(*given).__call__
        made = requested.map_batches(make, compute=ray.data.TaskPoolStrategy(size=pool), **common)
    # Not Ray's half hour, in which a slow generator may finish no block.
    made.context.execution_no_progress_timeout_s = _BLOCKS_PATIENCE * stall_seconds
    for row in made.iter_rows():
        if row.get("error"):
            raise InputError(row["error"])
        if row.get("damaged"):
            raise DamagedFileError(row["damaged"])
        if row.get("deaths"):
            raise RepeatedDeathError
        if lost:
            lost.finished()
        yield Part(**{field: row[field] for field in Part.__slots__})


def run_in_worker(
    function: Callable[..., T],
    *arguments: Any,
    resources: ResourcesConfig,
    end_process: bool = False,
) -> T:
    """Run `function` once where a worker would run; end it if it hangs. InputErrors pass on.

    end_process: free its memory after it. A process with a GPU is always ended, as it keeps the
    GPU's memory; one without serves stages.
    """
    result: T = fetch(_start(function, arguments, resources, end_process))
    return result


def map_in_workers(
    function: Callable[..., T], arguments: Sequence[Sequence[Any]], resources: ResourcesConfig
) -> Iterator[T]:
    """Yield `function(*each)` of all `arguments`, in order; see `run_in_worker`."""
    workers = num_workers(resources)
    started = [_start(function, each, resources) for each in arguments[:workers]]
    for position in range(len(arguments)):
        yield fetch(started[position])
        started[position] = None  # frees what it returned
        started += [_start(function, each, resources) for each in arguments[len(started) :][:1]]


def _start(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    resources: ResourcesConfig,
    end_process: bool = False,
) -> Any:
    gpus = resources.gpus_per_worker
    task = use_ray().remote(
        num_cpus=resources.cpus_per_worker,
        num_gpus=gpus,
        max_calls=1 if gpus or end_process else 0,
    )(_run_watched)
    return task.remote(resources.stall_seconds, function, *arguments)


def fetch(result: ray.ObjectRef) -> Any:
    """Return what a task returned; its InputError passes on as it is."""
    import ray

    try:
        return ray.get(result)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise


def _run_watched(stall_seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    with exit_on_stall(stall_seconds):
        return function(*arguments)


def check_plugins(
    given: Sequence[Plugin], label_names: tuple[str, ...], resources: ResourcesConfig
) -> None:
    """Build each generator and embedder once, where it will run; InputError where one can't be."""
    distinct = [plugin for number, plugin in enumerate(given) if plugin not in given[:number]]
    if distinct:
        run_in_worker(_build, distinct, label_names, resources=resources)


def _build(given: Sequence[Plugin], label_names: tuple[str, ...]) -> None:
    for plugin in given:
        names = [label_names] if plugin.plugin_type == "generator" else []
        plugins.build(plugin.plugin_type, plugin.kind, plugin.options, *names)
        note_progress()


def count_blocks(num_parts: int, workers: int) -> int:
    """Return the number of blocks of a stage: enough to keep all workers busy, none too small."""
    return min(num_parts, max(4 * workers, num_parts // _PARTS_PER_BLOCK))

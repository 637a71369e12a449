"""Where work on synthetic images runs: the parts of a stage, single functions, plugins tried out.

Workers with a GPU are an actor pool of Ray Data: an actor keeps its weights for the stage. Workers
without are Ray tasks: their processes are used again from stage to stage, so plugins are loaded
once per process and run. Ray Data would cost a small run of such workers a third of its CPU time
(benchmarks/notes/speed.md).

Whatever kills its worker is begun again a few times, on any node. A worker that hangs ends itself
(pe_ray.runtime.watchdog).
"""

from __future__ import annotations

import io
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from pe_ray import plugins
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.config.kinds import Plugin
from pe_ray.errors import DamagedFileError, InputError
from pe_ray.files.array_files import encode_arrays
from pe_ray.files.parts import Part
from pe_ray.runtime.cluster import num_workers, on_this_node, use_ray
from pe_ray.runtime.watchdog import LostNodes, StalledError, exit_on_stall, note_progress

if TYPE_CHECKING:
    import ray

T = TypeVar("T")

_PARTS_PER_BLOCK = 4  # a block costs Ray Data about 12 ms, a part takes a worker 0.1 s and up
_DEATHS = 3  # of the workers of one part, which are made up for
_PATIENCE = 8  # times stall_seconds, in which some part must be finished

Request = dict[str, Any]
"""What one part is made from: start, stop (rows) and whatever arrays its worker needs."""


class PartWorker:
    """Makes the requested parts. Only its plugins are costly to construct."""

    def make(self, request: Mapping[str, Any]) -> Part:
        """Make and write one part."""
        raise NotImplementedError


def make_parts(
    requests: Sequence[Request], worker: Callable[[], PartWorker], resources: ResourcesConfig
) -> Iterator[Part]:
    """Yield parts as they are made, in any order; raise the first InputError.

    worker: called in each worker process, makes what makes the parts. Of other errors `is_fault`
    tells whether the parts that are missing can be asked for again.
    """
    make = _make_in_actors if resources.gpus_per_worker else _make_in_tasks
    return make(requests, worker, resources)


def is_fault(error: Exception) -> bool:
    """Tell whether something died, as opposed to an exception of the code that it ran."""
    import ray

    died = isinstance(error, ray.exceptions.RayError)
    raised = isinstance(error, ray.exceptions.RayTaskError)
    return isinstance(error, StalledError | _RepeatedDeathError) or (died and not raised)


def _make_in_tasks(
    requests: Sequence[Request], worker: Callable[[], PartWorker], resources: ResourcesConfig
) -> Iterator[Part]:
    """Yield parts that Ray tasks make, as many at a time as there are workers."""
    ray, stall_seconds = use_ray(), resources.stall_seconds
    task = ray.remote(
        num_cpus=resources.cpus_per_worker, max_retries=_DEATHS, scheduling_strategy="SPREAD"
    )(_run_watched)
    constructor, waiting = ray.put(worker), iter(requests)
    running: list[Any] = []  # of references
    try:
        while True:
            free = max(0, num_workers(resources) - len(running))  # a cluster may have shrunk
            for request in islice(waiting, free):
                running.append(task.remote(stall_seconds, _make_part, constructor, request))
            if not running:
                return
            made, running = ray.wait(running, timeout=_PATIENCE * stall_seconds)
            if not made:
                raise StalledError
            for part in made:
                yield fetch(part)
    finally:
        for part in running:
            ray.cancel(part)


def _make_part(construct: Callable[[], PartWorker], request: Request) -> Part:
    return construct().make(request)


class _RepeatedDeathError(Exception):
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

    It is on this node, since a node with an actor is never given back. Jobs of two Rays in one
    process have the same id, so the session counts too.
    """
    import ray

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, **on_this_node()}
    return ray.remote(**options)(_Attempts).remote()


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


def _make_in_actors(
    requests: Sequence[Request], worker: Callable[[], PartWorker], resources: ResourcesConfig
) -> Iterator[Part]:
    """Yield parts that an actor pool of Ray Data makes."""
    ray = use_ray()
    from ray.data.exceptions import ExecutionTimeoutError

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import sets another level
    workers, stall_seconds = num_workers(resources), resources.stall_seconds
    blocks = min(len(requests), max(4 * workers, len(requests) // _PARTS_PER_BLOCK))
    pool = min(workers, blocks)
    requested = ray.data.from_items(
        [{"request": encode_arrays(request)} for request in requests],
        override_num_blocks=blocks,
    )
    context = ray.get_runtime_context()
    counter = _attempts_of(context.get_session_name(), context.get_job_id())
    attempts = partial(counter.count.remote, uuid.uuid4().hex)
    made = requested.map_batches(
        _PartMaker,
        fn_constructor_args=(worker, stall_seconds, attempts),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool, initial_size=pool),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
    )
    lost = LostNodes(stall_seconds)
    made.context.enable_progress_bars = made.context.print_on_execution_start = False
    made.context.custom_execution_callback_classes = [lost.callback()]
    made.context.execution_no_progress_timeout_s = _PATIENCE * stall_seconds
    try:
        for row in made.iter_rows():
            if row.get("error"):
                raise InputError(row["error"])
            if row.get("damaged"):
                raise DamagedFileError(row["damaged"])
            if row.get("deaths"):
                raise _RepeatedDeathError
            lost.finished()
            yield Part(**{field: row[field] for field in Part.__slots__})
    except ExecutionTimeoutError:
        raise StalledError from None


def _unpack(content: bytes) -> Request:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {name: stored[name] if stored[name].ndim else stored[name].item() for name in stored}


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

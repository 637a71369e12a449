"""One stage of a run: many parts, made by Ray's workers, each written once and whole.

A part is a pure function of its request, so it may be made again anywhere at any time. What a
killed worker was making goes to another one. A killed driver's parts are made by the next start,
which asks only for those that are missing. The driver gets one small value per part.

A worker that hangs ends itself (pe_ray.runtime.watchdog). Where one part kills its workers again
and again, or nothing is finished for long, the missing parts are begun anew, until three times in a
row no part is finished.

Workers with a GPU are actors, which keep their weights for the stage. Workers without are tasks:
Ray reuses their processes from stage to stage, so plugins are loaded once per process and run.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pe_ray import plugins
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.config.kinds import Plugin
from pe_ray.errors import FaultError, InputError
from pe_ray.files.parts import Part, commit, find_parts, read_manifest, remove_damaged
from pe_ray.files.storage import Location, full_disk_as_input_error
from pe_ray.runtime.cluster import num_workers, use_ray
from pe_ray.runtime.progress import Progress
from pe_ray.runtime.watchdog import StalledError, exit_on_stall, note_progress

if TYPE_CHECKING:
    import ray

logger = logging.getLogger(__name__)
T = TypeVar("T")

_ATTEMPTS = 3  # in a row that finish nothing
_PATIENCE = 8  # times stall_seconds: for one part, and for machines to begin on
_DEATHS = 3  # of the workers of one part, which an attempt makes up for

Request = dict[str, Any]
"""What one part is made from: start, stop (rows) and whatever arrays its worker needs."""
_Submit = Callable[[Request | None], Any]


class PartWorker:
    """Makes the requested parts. Only its plugins are costly to construct."""

    def make(self, request: Mapping[str, Any]) -> Part:
        """Make and write one part."""
        raise NotImplementedError


class _Maker:
    """Makes the parts of one stage in one process; constructs its worker for the first."""

    def __init__(self, construct: Callable[[], PartWorker], stall_seconds: float) -> None:
        self._construct, self._stall_seconds = construct, stall_seconds
        self._worker: PartWorker | None = None

    def make(self, request: Request | None) -> Part | None:
        """Make a part. None: do nothing, which tells that this process is there."""
        if request is None:
            return None
        with exit_on_stall(self._stall_seconds):
            self._worker = self._worker or self._construct()
            return self._worker.make(request)


_makers: dict[str, _Maker] = {}
"""That of the last stage whose parts this process made in tasks."""


def _make_in_task(
    stage: str,
    construct: Callable[[], PartWorker],
    stall_seconds: float,
    request: Request | None,
) -> Part | None:
    if stage not in _makers:
        _makers.clear()
        _makers[stage] = _Maker(construct, stall_seconds)
    return _makers[stage].make(request)


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

    died = isinstance(error, ray.exceptions.RayError)
    raised = isinstance(error, ray.exceptions.RayTaskError)
    stopped = isinstance(error, StalledError)
    return stopped or (died and not raised)


def _make(
    requests: Sequence[Request], worker: Callable[[], PartWorker], resources: ResourcesConfig
) -> Iterator[Part]:
    """Yield parts as they are made, in any order.

    A maker takes a request when it is free. One that dies is replaced, and what it was making goes
    to the next free one: the replacement may have to wait for a machine.
    """
    ray = use_ray()
    given = (uuid.uuid4().hex, ray.put(worker), resources)
    waiting, deaths = deque(requests), Counter[int]()
    idle: list[_Submit] = []
    busy: dict[Any, tuple[_Submit, Request | None]] = {}

    def begin(submit: _Submit, request: Request | None) -> None:
        busy[submit(request)] = (submit, request)

    try:
        for _ in range(min(num_workers(resources), len(requests))):
            begin(_start_maker(*given), None)
        while waiting or any(request for _, request in busy.values()):
            done, _ = ray.wait(list(busy), timeout=_PATIENCE * resources.stall_seconds)
            if not done:
                raise StalledError
            submit, request = busy.pop(done[0])
            try:
                part = fetch(done[0])
            except Exception as error:
                which = request["start"] if request else -1
                deaths[which] += 1
                if not _is_fault(error) or deaths[which] > _DEATHS:
                    raise
                if request:
                    waiting.appendleft(request)
                begin(_start_maker(*given), None)
            else:
                idle.append(submit)
                if part:
                    yield part
            while waiting and idle:
                begin(idle.pop(), waiting.popleft())
    finally:
        for result in busy:
            ray.cancel(result)


def _start_maker(
    stage: str, worker: ray.ObjectRef, resources: ResourcesConfig
) -> Callable[[Request | None], ray.ObjectRef]:
    """Return what starts to make the part of a request, one at a time."""
    needs = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker}
    given, ray = (worker, resources.stall_seconds), use_ray()
    if resources.gpus_per_worker:
        actor = ray.remote(**needs, max_restarts=0)(_Maker).remote(*given)
        return lambda request: actor.make.remote(request)  # ends when this is forgotten
    task = ray.remote(**needs, max_retries=0)(_make_in_task)
    return partial(task.remote, stage, *given)


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

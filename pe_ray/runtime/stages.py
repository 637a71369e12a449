"""One stage of a run: many parts, made by workers, each written once and whole.

A part is a pure function of its request, so it may be made again anywhere at any time: what a
killed worker was making is begun again by Ray, what a killed driver lacks by the next start, which
asks only for the parts that are missing. The driver sees one small row per part.

Where Ray can't make up for a loss (a part kills its worker again and again, an actor of a lost node
fits nowhere), the missing parts are shared out again over the nodes that are left, until three
times in a row no part is finished.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pe_ray.config.blocks import ResourcesConfig
from pe_ray.errors import FaultError
from pe_ray.files.parts import Part, commit, find_parts, read_manifest, remove_damaged
from pe_ray.files.storage import Location, full_disk_as_input_error
from pe_ray.runtime.cluster import num_workers
from pe_ray.runtime.progress import Progress
from pe_ray.runtime.workers import PartWorker, Request, is_fault, make_parts

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # in a row that finish nothing


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
                    for part in make_parts(missing, stage.worker, resources):
                        made[part.start] = part
                        progress.add(part.stop - part.start)
                except Exception as error:
                    if not is_fault(error):
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

"""Where a run stands: what is done, running and left, and what was spent.

Read from the run directory alone (parts, manifests, lock, ledger), so from any machine that sees
it, while the run goes on or after it stopped.

Guarantee: everything it says is in the run directory, which is safe to publish.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pe_ray.config import Config
from pe_ray.files.parts import manifest_of, rows_found
from pe_ray.files.storage import Location
from pe_ray.release.ledger import Ledger
from pe_ray.run import open_run
from pe_ray.runtime.run_directory import RunDirectory, in_use
from pe_ray.values import Budget

State = Literal["done", "running", "stopped", "begun", "waiting"]
_UNFINISHED: dict[bool | None, State] = {True: "running", False: "stopped", None: "begun"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage. rows: that it makes (samples); None for a release, of which no part is told."""

    stage: str
    iteration: int | None
    state: State
    rows: int | None
    rows_done: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run. running: whether a process holds it now; None where that can't be told (a store)."""

    path: Location
    running: bool | None
    finished: bool
    stages: tuple[StageStatus, ...]
    rows_left: int
    releases_left: int
    spent: float
    budget: Budget


def status(path: str | Location) -> RunStatus:
    """The state of the run in `path`; raises InputError where there is none."""
    opened = open_run(path)
    run, config = opened.directory, opened.config
    ledger = Ledger.open(run.ledger)
    running = in_use(run)
    released = {e.release.key for e in ledger.entries() if e.state == "committed"}
    stages: list[StageStatus] = []
    current = _UNFINISHED[running]
    for name, iteration, rows, done in _stages(run, config, released):
        complete = done is True or done == rows
        begun = not any(stage.state == current for stage in stages)
        stages.append(
            StageStatus(
                stage=name,
                iteration=iteration,
                state="done" if complete else current if begun else "waiting",
                rows=rows,
                rows_done=None if rows is None else min(int(done), rows),
            )
        )
    return RunStatus(
        path=run.path,
        running=running,
        finished=all(stage.state == "done" for stage in stages),
        stages=tuple(stages),
        rows_left=sum((stage.rows or 0) - (stage.rows_done or 0) for stage in stages),
        releases_left=sum(stage.rows is None and stage.state != "done" for stage in stages),
        spent=ledger.spent(),
        budget=ledger.budget,
    )


def _stages(
    run: RunDirectory, config: Config, released: set[str]
) -> Iterator[tuple[str, int | None, int | None, int | bool]]:
    """(stage, iteration, rows, rows done; or for a release whether it is made), in order."""
    sizes = config.schedule.sizes
    if config.privacy.label_fractions == "dp":
        yield "label_counts", 0, None, "label_counts" in released
    yield "population", 0, sizes[0], _done(run.population(0), sizes[0])
    for iteration in range(1, config.schedule.iterations + 1):
        before, made = sizes[iteration - 1], _done(run.population(iteration), sizes[iteration])
        # Of a trial that a search took as its result, the votes have the trial's own keys.
        voted = f"votes/{iteration:04d}" in released or made == sizes[iteration]
        embedded = before if voted else _done(run.embedding(iteration), before)
        yield "embedding", iteration, before, embedded
        yield "votes", iteration, None, voted
        yield "population", iteration, sizes[iteration], made
    if config.teacher:
        yield "teacher", config.schedule.iterations, None, "teacher" in released
    yield "final_set", None, sizes[-1], _done(run.synthetic, sizes[-1])


def _done(directory: Location, rows: int) -> int:
    """Rows made; all of them only where the manifest says that the stage is complete."""
    return rows if manifest_of(directory) else min(rows_found(directory), rows - 1)


def as_tree(made: RunStatus) -> dict[str, object]:
    """Plain values, for --json."""
    return {
        "run": str(made.path),
        "state": "finished" if made.finished else _UNFINISHED[made.running],
        "stages": [
            {name: getattr(stage, name) for name in StageStatus.__slots__} for stage in made.stages
        ],
        "left": {"rows": made.rows_left, "releases": made.releases_left},
        "spent": {"epsilon": made.spent, "delta": made.budget.delta, "unit": made.budget.unit},
        "budget_epsilon": made.budget.epsilon,
    }


def lines(made: RunStatus) -> Iterator[str]:
    """For people: the state, the stages begun or next, and the rest in numbers."""
    yield f"state       {as_tree(made)['state']}"
    for stage in made.stages:
        if stage.state == "waiting":
            continue
        name = stage.stage if stage.iteration is None else f"{stage.stage} {stage.iteration}"
        rows = "" if stage.rows is None else f" {stage.rows_done:,} of {stage.rows:,} rows"
        yield f"{stage.state:<12}{name}{rows}"
    waiting = sum(stage.state == "waiting" for stage in made.stages)
    left = f"{made.rows_left:,} rows, {made.releases_left} releases, {waiting} stages to begin"
    yield f"left        {left}"
    epsilon = "inf (not private)" if math.isinf(made.spent) else f"{made.spent:.6g}"
    yield f"spent       epsilon {epsilon} of {made.budget.epsilon:g}, delta {made.budget.delta:g}"
    if not made.finished and made.running is False:
        yield "continue    repeat the same `pe-ray run` command"

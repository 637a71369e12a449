"""How far a run is: what is done, running and left, and what was spent.

Read from the run directory alone (parts, manifests, lock, ledger), so from any machine that sees
it, at any time.

Guarantee: everything printed is in the run directory, which is safe to publish.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pe_ray.files.parts import count_rows_found, read_manifest
from pe_ray.files.storage import Location
from pe_ray.release.releases import shape_releases
from pe_ray.report.facts import Facts, gather
from pe_ray.runtime.run_directory import in_use


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage; the rows are None for a release, which has no visible parts.

    state: done, waiting, or the state of the run for the first stage that is not done.
    """

    stage: str
    iteration: int | None
    state: str
    rows: int | None
    rows_done: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run and its stages, in order, with the keys that `--json` prints.

    state: finished, running or stopped; begun where a lock can't be seen, in a store.
    """

    run: str
    state: str
    stages: tuple[StageStatus, ...]
    left: Mapping[str, int]
    spent: Mapping[str, Any]
    budget_epsilon: float


def read_status(path: str | Location) -> RunStatus:
    """Read how far the run in `path` is; InputError where there is none."""
    facts = gather(path)
    stages = list(_list_stages(facts))
    left = [place for place, stage in enumerate(stages) if stage.state != "done"]
    state = "finished"
    if left:
        state = {True: "running", False: "stopped", None: "begun"}[in_use(facts.run)]
        stages[left[0]] = replace(stages[left[0]], state=state)
    return RunStatus(
        run=str(facts.run.path),
        state=state,
        stages=tuple(stages),
        left={
            "rows": sum((stage.rows or 0) - (stage.rows_done or 0) for stage in stages),
            "releases": sum(stages[place].rows is None for place in left),
        },
        spent={"epsilon": facts.spent, "delta": facts.budget.delta, "unit": facts.budget.unit},
        budget_epsilon=facts.budget.epsilon,
    )


def _list_stages(facts: Facts) -> Iterator[StageStatus]:
    """Yield the stages in order, each done or waiting."""
    run, sizes = facts.run, facts.config.schedule.sizes
    released = {e.release.key for e in facts.entries if e.state == "committed"}
    for release in shape_releases(facts.config):
        iteration, done = release.iteration, release.key in released
        if release.kind != "votes":
            yield _stage(release.key, iteration, done)
            continue
        before, rows = sizes[iteration - 1], sizes[iteration]
        if iteration == 1:
            yield _stage("population", 0, _count_rows(run.population(0), before), before)
        made = _count_rows(run.population(iteration), rows)
        done = done or made == rows  # a search's trial, taken as its result, has other keys
        embedded = before if done else _count_rows(run.embedding(iteration), before)
        yield _stage("embedding", iteration, embedded, before)
        yield _stage("votes", iteration, done)
        yield _stage("population", iteration, made, rows)
    yield _stage("final_set", None, _count_rows(run.synthetic, sizes[-1]), sizes[-1])


def _stage(stage: str, iteration: int | None, done: int, rows: int | None = None) -> StageStatus:
    """Return a stage with `done` of its `rows`; without rows, a release that is done or not."""
    return StageStatus(
        stage=stage,
        iteration=iteration,
        state="done" if done == (1 if rows is None else rows) else "waiting",
        rows=rows,
        rows_done=None if rows is None else done,
    )


def _count_rows(directory: Location, rows: int) -> int:
    """Return the rows made; all `rows` only where the manifest completes the stage."""
    return rows if read_manifest(directory) else min(count_rows_found(directory), rows - 1)

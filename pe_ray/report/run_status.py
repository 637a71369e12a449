"""How far a run is: what is done, running and left, and what was spent.

Read from the run directory alone (parts, manifests, lock, ledger), so from any machine that sees
it, at any time.

Guarantee: everything printed is in the run directory, which is safe to publish.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pe_ray.files.parts import count_rows_found, read_manifest
from pe_ray.files.storage import GivenPath, Location
from pe_ray.release.releases import shape_releases
from pe_ray.report.facts import Facts, gather
from pe_ray.runtime.run_directory import in_use

StageStatus = dict[str, Any]
"""stage, iteration, state and the rows, which are None for a release.

The state is done, waiting, or that of the run for the first stage that is not done.
"""


def read_status(path: GivenPath) -> dict[str, Any]:
    """Return what `--json` prints of the run in `path`; InputError where there is none.

    scores: the last on public images; better: which of them are good, where that is known.
    Its state is finished, running or stopped; begun where a lock can't be seen, in a store.
    """
    from pe_ray.report.score_tables import last_scores, name_better

    facts = gather(path)
    scores = last_scores(facts)
    stages = list(_list_stages(facts))
    left = [stage for stage in stages if stage["state"] != "done"]
    state = "finished"
    if left:
        state = {True: "running", False: "stopped", None: "begun"}[in_use(facts.run)]
        left[0]["state"] = state
    rows = sum(stage["rows"] - stage["rows_done"] for stage in stages if stage["rows"])
    releases = sum(stage["rows"] is None for stage in left)
    return {
        "run": str(facts.run.path),
        "state": state,
        "stages": stages,
        "left": {"rows": rows, "releases": releases},
        "scores": scores,
        "better": name_better(facts.config, scores),
        "spent": {"epsilon": facts.spent, "delta": facts.budget.delta, "unit": facts.budget.unit},
        "budget_epsilon": facts.budget.epsilon,
    }


def _list_stages(facts: Facts) -> Iterator[StageStatus]:
    """Yield the stages in order, each done or waiting."""
    run, sizes = facts.run, facts.config.schedule.sizes
    committed = {e.release.key for e in facts.entries if e.state == "committed"}
    for release in shape_releases(facts.config):
        iteration, done = release.iteration, release.key in committed
        if release.kind != "votes":
            yield _describe(release.key, iteration, done)
            continue
        if iteration == 1:
            yield _describe("population", 0, _count_rows(run.population(0), sizes[0]), sizes[0])
        made, rows = _count_rows(run.population(iteration), sizes[iteration]), sizes[iteration]
        # The votes of a search's trial, taken as its result, have other keys.
        yield _describe("votes", iteration, done or made == rows)
        yield _describe("population", iteration, made, rows)
    rows = facts.num_final or facts.config.num_final
    yield _describe("final_set", None, _count_rows(run.synthetic, rows), rows)


def _describe(stage: str, iteration: int | None, done: int, rows: int | None = None) -> StageStatus:
    """Describe a stage with `done` of its `rows`; without rows, a release that is done or not."""
    return {
        "stage": stage,
        "iteration": iteration,
        "state": "done" if done == (1 if rows is None else rows) else "waiting",
        "rows": rows,
        "rows_done": None if rows is None else done,
    }


def _count_rows(directory: Location, rows: int) -> int:
    """Return the rows made; all `rows` only where the manifest completes the stage."""
    return rows if read_manifest(directory) else min(count_rows_found(directory), rows - 1)

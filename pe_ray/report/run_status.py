"""How far a run is: what is done, running and left, and what was spent.

Read from the run directory alone (parts, manifests, lock, ledger), so from any machine that sees
it, at any time.

Guarantee: everything printed is in the run directory, which is safe to publish.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pe_ray.files.parts import count_rows_found, read_manifest
from pe_ray.files.storage import Location
from pe_ray.release.releases import shape_releases
from pe_ray.report.facts import Facts, gather
from pe_ray.runtime.run_directory import in_use

Stage = dict[str, Any]
"""stage, iteration, state and the rows, which are None for a release.

The state is done, waiting, or that of the run for the first stage that is not done.
"""


def read_status(path: str | Location) -> dict[str, Any]:
    """Return what `--json` prints of the run in `path`; InputError where there is none.

    Its state is finished, running or stopped; begun where a lock can't be seen, in a store.
    """
    facts = gather(path)
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
        "spent": {"epsilon": facts.spent, "delta": facts.budget.delta, "unit": facts.budget.unit},
        "budget_epsilon": facts.budget.epsilon,
    }


def _list_stages(facts: Facts) -> Iterator[Stage]:
    """Yield the stages in order, each done or waiting."""
    run, sizes = facts.run, facts.config.schedule.sizes
    committed = {e.release.key for e in facts.entries if e.state == "committed"}
    for release in shape_releases(facts.config):
        iteration, done = release.iteration, release.key in committed
        if release.kind != "votes":
            yield _describe(release.key, iteration, done)
            continue
        before = sizes[iteration - 1]
        if iteration == 1:
            yield _look_up("population", 0, run.population(0), before)
        made = _look_up("population", iteration, run.population(iteration), sizes[iteration])
        done = done or made["state"] == "done"  # the votes of a search's trial have other keys
        if done:
            yield _describe("embedding", iteration, done, before, before)
        else:
            yield _look_up("embedding", iteration, run.embedding(iteration), before)
        yield _describe("votes", iteration, done)
        yield made
    yield _look_up("final_set", None, run.synthetic, sizes[-1])


def _look_up(stage: str, iteration: int | None, directory: Location, rows: int) -> Stage:
    """Describe the stage that makes `rows` in `directory`; only a manifest completes it."""
    done = read_manifest(directory) is not None
    rows_done = rows if done else min(count_rows_found(directory), rows - 1)
    return _describe(stage, iteration, done, rows, rows_done)


def _describe(
    stage: str,
    iteration: int | None,
    done: bool,
    rows: int | None = None,
    rows_done: int | None = None,
) -> Stage:
    return {
        "stage": stage,
        "iteration": iteration,
        "state": "done" if done else "waiting",
        "rows": rows,
        "rows_done": rows_done,
    }

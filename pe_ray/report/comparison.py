"""Several runs side by side: guarantees, settings that differ, metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pe_ray.report.facts import gather
from pe_ray.report.score_tables import list_scores


def compare(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return what `--json` prints of each run: its guarantee, settings and metrics.

    settings: by dotted key, only those that differ between the runs. metrics: the last value of
    each, those of the votes included.

    Guarantee: everything returned is post-processing of the runs' releases; each run's guarantee
    holds for it alone. Runs on the same private records compose.
    """
    found = [gather(path) for path in paths]
    settings = [_flatten(facts.config.tree()) for facts in found]
    keys = dict.fromkeys(key for tree in settings for key in tree if key != "output.path")
    differing = [key for key in keys if len({repr(tree.get(key)) for tree in settings}) > 1]
    return [
        {
            "run": path,
            "finished": facts.num_final is not None,
            "epsilon": facts.spent,
            "delta": facts.budget.delta,
            "unit": facts.budget.unit,
            "releases": len(facts.entries),
            "settings": {key: tree.get(key) for key in differing},
            "metrics": {
                name: value
                for row in list_scores(facts)
                for name, value in row.items()
                if name != "iteration" and value is not None
            },
        }
        for path, facts, tree in zip(paths, found, settings, strict=True)
    ]


def tabulate(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of a table with a column for each run; the first cell names the row."""
    flat = [{**run, **run["settings"], **run["metrics"]} for run in runs]
    names = dict.fromkeys(name for run in flat for name in run)
    shown = [name for name in names if name not in ("settings", "metrics")]
    return [[name, *(_format(run.get(name)) for run in flat)] for name in shown]


def _flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Return dotted key -> value; lists stay whole."""
    if not isinstance(tree, Mapping) or not tree:
        return {path: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flatten(value, f"{path}.{key}".lstrip("."))
    return found


def _format(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)

"""Several runs side by side: guarantees, settings that differ, metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pe_ray.files.storage import atomic_write, io_errors_as_input_errors
from pe_ray.report.facts import Facts, gather
from pe_ray.report.score_tables import list_scores, name_better

_CLAIM = ("run", "finished", "epsilon", "delta", "unit", "releases")


def compare(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return what `--json` prints of each run: its guarantee, metrics and settings.

    metrics: the last value of each, those of the votes included. better: `lower` or `higher`, for
    metrics that say so. settings: by dotted key, only those that differ between the runs.

    Guarantee: everything returned is post-processing of the runs' releases; each run's guarantee
    holds for it alone. Runs on the same private records compose.
    """
    return _describe(paths, [gather(path) for path in paths])


def _describe(paths: Sequence[str], found: Sequence[Facts]) -> list[dict[str, Any]]:
    settings = [_flatten(facts.config.tree()) for facts in found]
    keys = dict.fromkeys(key for tree in settings for key in tree if key != "output.path")
    differing = [key for key in keys if len({repr(tree.get(key)) for tree in settings}) > 1]
    runs = []
    for path, facts, tree in zip(paths, found, settings, strict=True):
        rows = list_scores(facts)
        metrics = {
            name: value
            for row in rows
            for name, value in row.items()
            if name != "iteration" and value is not None
        }
        runs.append(
            {
                "run": path,
                "finished": facts.num_final is not None,
                "epsilon": facts.spent,
                "delta": facts.budget.delta,
                "unit": facts.budget.unit,
                "releases": len(facts.entries),
                "metrics": metrics,
                "better": name_better(facts.config, metrics),
                "settings": {key: tree.get(key) for key in differing},
            }
        )
    return runs


def tabulate(runs: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[list[str]]]:
    """Return a table of results and one of settings, each with a column for each run.

    The first cell of a row names it; quality comes first.
    """
    better = {name: way for run in runs for name, way in run["better"].items()}
    metrics = dict.fromkeys(name for run in runs for name in run["metrics"])
    shown = sorted(metrics, key=lambda name: not name.startswith("public/"))
    results = [[name, *(_format(run[name]) for run in runs)] for name in _CLAIM]
    for name in shown:
        title = f"{name} ({better[name]} is better)" if name in better else name
        results.append([title, *(_format(run["metrics"].get(name)) for run in runs)])
    settings = [
        [name, *(_format(run["settings"][name]) for run in runs)] for name in runs[0]["settings"]
    ]
    return results, settings


def write_comparison(paths: Sequence[str], file: Path) -> None:
    """Write a page with the runs' pictures and results."""
    from pe_ray.report.page import render
    from pe_ray.report.samples import read_samples

    found = [gather(path) for path in paths]
    results, settings = tabulate(_describe(paths, found))
    samples = []
    for facts in found:
        last = len(facts.layouts) - 1
        by_label = read_samples(facts, last) if facts.layouts else {}
        names = facts.config.private.labels
        samples.append({names[label]: images for label, images in by_label.items()})
    page = render(
        "compare.html",
        names=[Path(path).name for path in paths],
        labels=list(dict.fromkeys(label for images in samples for label in images)),
        samples=samples,
        results=results[1:],
        settings=settings,
    )
    with io_errors_as_input_errors("--html", file):
        atomic_write(file, page.encode())


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

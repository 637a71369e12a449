"""Several runs side by side: guarantees, settings that differ, metrics.

Epsilons are compared only where they mean the same: each pair of unit and delta has its own charts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pe_ray.errors import InputError
from pe_ray.files.storage import atomic_write, io_errors_as_input_errors
from pe_ray.report.charts import draw_chart
from pe_ray.report.facts import gather
from pe_ray.report.page import render
from pe_ray.report.score_tables import VOTE_SCORES, is_number, list_scores
from pe_ray.values import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run of a comparison.

    run: the path as it was given. settings: by dotted key, only those that differ between the runs.
    metrics: the last value of each, those of the votes included.
    private_scores: from the data owner's file, else empty.
    """

    run: str
    finished: bool
    epsilon: float
    delta: float
    unit: Unit
    releases: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    private_scores: Mapping[str, float]


def compare(paths: Sequence[str], scores: Mapping[str, Path] | None = None) -> list[ComparedRun]:
    """Read the runs at `paths`.

    scores: run -> file with the output of `pe-ray audit RUN --json`. Those scores are PRIVATE: they
    were computed on private records without noise, and so is whatever shows them.

    Guarantee: without `scores` everything returned is post-processing of the runs' releases; each
    run's guarantee holds for it alone. Runs on the same private records compose.
    """
    scores = scores or {}
    if len(set(paths)) < len(paths):
        raise InputError("compare: a run is named twice; name each once")
    for name in scores:
        if name not in paths:
            raise InputError(f"--scores: {name} is not among the runs; name it as in RUN")
    found = {path: gather(path) for path in paths}
    settings = {path: _flatten(facts.config.tree()) for path, facts in found.items()}
    keys = dict.fromkeys(key for tree in settings.values() for key in tree if key != "output.path")
    differing = [k for k in keys if len({repr(tree.get(k)) for tree in settings.values()}) > 1]
    return [
        ComparedRun(
            run=path,
            finished=facts.num_final is not None,
            epsilon=facts.spent,
            delta=facts.budget.delta,
            unit=facts.budget.unit,
            releases=len(facts.entries),
            settings={key: settings[path].get(key) for key in differing},
            metrics={
                name: value
                for row in list_scores(facts)
                for name, value in row.items()
                if name != "iteration" and is_number(value)
            },
            private_scores=_read_private_scores(scores[path]) if path in scores else {},
        )
        for path, facts in found.items()
    ]


def tabulate(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """Return the rows of a table with a column for each run; the first cell names the row."""
    fields = ("run", "finished", "epsilon", "delta", "unit", "releases")
    rows = [[name, *(_format(getattr(run, name)) for run in runs)] for name in fields]
    for prefix, block in (("", "settings"), ("", "metrics"), ("PRIVATE ", "private_scores")):
        trees: list[Mapping[str, Any]] = [getattr(run, block) for run in runs]
        for name in dict.fromkeys(name for tree in trees for name in tree):
            rows.append([prefix + name, *(_format(tree.get(name)) for tree in trees)])
    return rows


def write_comparison(runs: Sequence[ComparedRun], output: Path) -> Path:
    """Write the comparison as a page; one with private scores is never written into a run."""
    private = any(run.private_scores for run in runs)
    output = output.resolve()
    for folder in output.parents:
        if private and (folder / "ledger.sqlite").exists():
            raise InputError(
                f"--output: {folder} is a run directory, which is publishable, and the scores are "
                "private; give another place"
            )
    if output.is_dir():
        raise InputError(f"--output: {output} is a folder; give the name of a file")
    groups: dict[str, dict[str, ComparedRun]] = {}
    for number, run in enumerate(runs, 1):
        groups.setdefault(f"per {run.unit}, delta {run.delta:g}", {})[str(number)] = run
    page = render(
        "compare.html",
        private=private,
        rows=tabulate(runs),
        groups=[(where, _draw_metrics(where, members)) for where, members in groups.items()],
    )
    with io_errors_as_input_errors("--output", output):
        atomic_write(output, page.encode())
    return output


def _draw_metrics(where: str, members: Mapping[str, ComparedRun]) -> list[Markup]:
    """Draw each quality metric against epsilon; members: by number, all with the guarantee `where`.

    Runs without noise have no place on the axis.
    """
    charts = []
    for name in dict.fromkeys(name for run in members.values() for name in run.metrics):
        points = {
            number: (run.epsilon, run.metrics[name])
            for number, run in members.items()
            if name in run.metrics and math.isfinite(run.epsilon)
        }
        if points and name not in VOTE_SCORES:
            chart = draw_chart(
                f"{name}, {where}",
                "; ".join(f"run {n}: {y:.4g} at epsilon {x:.4g}" for n, (x, y) in points.items()),
                x_label=f"epsilon ({where})",
                y_label=name,
                dots=points,
            )
            charts.append(chart)
    return charts


def _read_private_scores(file: Path) -> dict[str, float]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"--scores: {file} can't be read ({type(error).__name__}); give the output of "
            "`pe-ray audit RUN --json`"
        ) from None
    if not isinstance(tree, dict) or not all(is_number(value) for value in tree.values()):
        raise InputError(f"--scores: {file} is not the output of `pe-ray audit RUN --json`")
    return tree


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

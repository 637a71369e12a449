"""Several runs side by side: what each guarantees, what sets them apart, how good each is.

Epsilons are compared only where they mean the same: runs with another unit or delta get a chart of
their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pe_ray.errors import InputError
from pe_ray.files.storage import atomic_write, reported
from pe_ray.report.charts import Axis, Series, line_chart
from pe_ray.report.facts import Facts, gather
from pe_ray.report.page import Picture, picture, templates
from pe_ray.report.samples import SAMPLES_PER_LABEL, samples_of
from pe_ray.report.score_tables import VOTE_SCORES, is_number, rows_of

_LABELS_PER_RUN = 10
_NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VOTES = {f"votes: {name}": name for name in ("survivors", "effective_parents", "top_tenth_share")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One run of a comparison.

    path: as it was given; settings: dotted key -> value, only those that differ between the runs;
    metrics: the last of each; private_scores: from the data owner's file, else empty.
    """

    path: str
    facts: Facts
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    private_scores: Mapping[str, float]

    @property
    def finished(self) -> bool:
        return self.facts.num_final is not None


def compare(paths: Sequence[str], scores: Mapping[str, Path] | None = None) -> list[Compared]:
    """Gather the runs at `paths`.

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
            raise InputError(f"--scores: {name} is none of the runs compared; name it as in RUN")
    found = {path: gather(path) for path in paths}
    settings = {path: _flat(facts.config.tree()) for path, facts in found.items()}
    keys = list(dict.fromkeys(key for tree in settings.values() for key in tree))
    differing = [
        key
        for key in keys
        if key != "output.path" and len({repr(tree.get(key)) for tree in settings.values()}) > 1
    ]
    return [
        Compared(
            path=path,
            facts=facts,
            settings={key: settings[path].get(key) for key in differing},
            metrics=_metrics(facts),
            private_scores=_scores(scores[path]) if path in scores else {},
        )
        for path, facts in found.items()
    ]


def tree_of(runs: Sequence[Compared]) -> dict[str, Any]:
    """The comparison as plain values."""
    return {
        "runs": [
            {
                "run": run.path,
                "finished": run.finished,
                "epsilon": run.facts.spent,
                "delta": run.facts.budget.delta,
                "unit": run.facts.budget.unit,
                "releases": len(run.facts.entries),
                "settings": dict(run.settings),
                "metrics": dict(run.metrics),
            }
            | ({"private_scores": dict(run.private_scores)} if run.private_scores else {})
            for run in runs
        ]
    }


def table_of(runs: Sequence[Compared]) -> list[list[str]]:
    """Lines of a table, a column for each run: name first, then guarantee, settings, metrics."""
    facts = [run.facts for run in runs]
    lines = [
        ["run", *(run.path for run in runs)],
        ["epsilon spent", *(_epsilon(f.spent) for f in facts)],
        ["delta", *(f"{f.budget.delta:g}" for f in facts)],
        ["unit", *(f.budget.unit for f in facts)],
        ["releases", *(str(len(f.entries)) for f in facts)],
        ["finished", *("yes" if run.finished else _progress(run.facts) for run in runs)],
    ]
    for key in runs[0].settings:
        lines.append([key, *(_cell(run.settings[key]) for run in runs)])
    for name in _names([run.metrics for run in runs]):
        lines.append([name, *(_cell(run.metrics.get(name)) for run in runs)])
    for name in _names([run.private_scores for run in runs]):
        cells = (_cell(run.private_scores.get(name)) for run in runs)
        lines.append([f"PRIVATE {name}", *cells])
    return lines


def write_comparison(runs: Sequence[Compared], output: Path) -> Path:
    """Write the comparison as a page; one with private scores is never put into a run."""
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
    page = (
        templates()
        .get_template("compare.html")
        .render(
            version=version("pe_ray"),
            private=private,
            runs=[
                {
                    "letter": _letter(place),
                    "run": run,
                    "epsilon": _epsilon(run.facts.spent),
                    "progress": _progress(run.facts),
                    "strips": _strips(run.facts),
                }
                for place, run in enumerate(runs)
            ],
            groups=len(_groups(runs)),
            settings=[
                [key, *(_cell(run.settings[key]) for run in runs)] for key in runs[0].settings
            ],
            metrics=[
                (name, [run.metrics.get(name) for run in runs])
                for name in _names([run.metrics for run in runs])
            ],
            private_scores=[
                (name, [run.private_scores.get(name) for run in runs])
                for name in _names([run.private_scores for run in runs])
            ],
            charts=_charts(runs, "metrics"),
            private_charts=_charts(runs, "private_scores"),
        )
    )
    with reported("--output", output):
        atomic_write(output, page.encode())
    return output


def _charts(runs: Sequence[Compared], which: str) -> list[tuple[str, list[Markup]]]:
    """(unit and delta, a chart of epsilon against each metric), for each such pair."""
    made = []
    for (unit, delta), members in _groups(runs).items():
        charts = []
        for name in _names([getattr(run, which) for _, run in members]):
            if name in _VOTES:
                continue
            series = [
                Series(
                    points=[(run.facts.spent, getattr(run, which)[name])],
                    name=letter,
                    dots_only=True,
                )
                for letter, run in members
                if name in getattr(run, which) and math.isfinite(run.facts.spent)
            ]
            if series:
                charts.append(
                    line_chart(
                        f"{name} against epsilon",
                        "; ".join(
                            f"{line.name}: {line.points[0][1]:.4g} at epsilon "
                            f"{line.points[0][0]:.4g}"
                            for line in series
                        ),
                        series,
                        Axis(label=f"epsilon (per {unit}, delta {delta:g})", low=0.0),
                        Axis(label=name),
                        size=(320, 220),
                    )
                )
        if charts:
            made.append((f"Per {unit}, delta {delta:g}", charts))
    return made


def _groups(runs: Sequence[Compared]) -> dict[tuple[str, float], list[tuple[str, Compared]]]:
    """(unit, delta) -> (letter, run) of the runs whose epsilons mean the same."""
    groups: dict[tuple[str, float], list[tuple[str, Compared]]] = {}
    for place, run in enumerate(runs):
        budget = run.facts.budget
        groups.setdefault((budget.unit, budget.delta), []).append((_letter(place), run))
    return groups


def _metrics(facts: Facts) -> dict[str, float]:
    """The last value of each metric by iteration; those of the votes are named as such."""
    found: dict[str, float] = {}
    for row in rows_of(facts):
        found |= {
            name: value
            for name, value in row.items()
            if name not in ("iteration", *VOTE_SCORES) and is_number(value)
        }
        found |= {words: row[name] for words, name in _VOTES.items() if is_number(row.get(name))}
    return found


def _scores(file: Path) -> dict[str, float]:
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


def _strips(facts: Facts) -> list[tuple[str, int, Picture]]:
    """(label, how many, samples of it) of the first labels of the latest population."""
    if not facts.layouts:
        return []
    samples = samples_of(facts, len(facts.layouts) - 1)
    return [
        (facts.config.private.labels[label], len(images), picture(images, SAMPLES_PER_LABEL))
        for label, images in list(samples.items())[:_LABELS_PER_RUN]
    ]


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> value; lists stay whole."""
    if not isinstance(tree, Mapping) or not tree:
        return {path: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{path}.{key}".lstrip("."))
    return found


def _names(scores: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for each in scores for name in each))


def _letter(place: int) -> str:
    return _NAMES[place] if place < len(_NAMES) else f"#{place + 1}"


def _epsilon(spent: float) -> str:
    return "none: not private" if math.isinf(spent) else f"{spent:.6g}"


def _progress(facts: Facts) -> str:
    return f"iteration {max(0, len(facts.layouts) - 1)} of {facts.config.schedule.iterations}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = json.dumps(value) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= 48 else text[:45] + "..."

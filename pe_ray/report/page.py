"""A run as one HTML page: no request leaves it, no script runs in it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pe_ray.files.images import to_pillow
from pe_ray.release.releases import LABEL_COUNTS
from pe_ray.report.facts import Facts, compute_privacy_curve
from pe_ray.report.samples import (
    LABELS_SHOWN,
    PIXEL_ART,
    THUMBNAIL,
    Image,
    join_images,
    pick_evenly,
)
from pe_ray.report.score_tables import Row, last_scores, list_metrics, name_better
from pe_ray.synthetic.population import fractions_of

_VOTE_CHARTS = ("survivors", "effective_parents", "top_tenth_share")
Samples = Sequence[Mapping[int, Sequence[Image]]]
"""Label -> samples, of S_0, S_1, ..."""


def render(template: str, **values: Any) -> str:
    """Return the page that `template` makes of `values`."""
    return _templates().get_template(template).render(version=version("pe_ray"), **values)


@cache
def _templates() -> Environment:
    """Load the templates; they escape every value, and a missing name is an error."""
    made = Environment(
        loader=PackageLoader("pe_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"figure": _format_number, "pick": pick_evenly, "tile": _tile}
    return made


def _format_number(value: Any) -> str:
    """Format a table cell; a dash where there is no value."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}"


def _tile(images: Sequence[Image], columns: int) -> dict[str, Any]:
    """Join images; return the data, the size in pixels and whether pixels stay hard."""
    joined = join_images([images[i : i + columns] for i in range(0, len(images), columns)])
    side = max(images[0].shape[:2])
    small = side <= PIXEL_ART
    zoom = max(1, (28 if columns == 2 else 56) // side)
    sink = io.BytesIO()
    to_pillow(joined).save(sink, format="WEBP", lossless=small, quality=85)
    return {
        "uri": _encode_uri("webp", sink),
        "width": joined.shape[1] * zoom,
        "height": joined.shape[0] * zoom,
        "hard": small,
    }


def _encode_uri(kind: str, content: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def draw_chart(points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> Markup:
    """Draw a line as an `img` element with an SVG in it; equal arguments give equal bytes."""
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "pe_ray"}]):
        figure = Figure(figsize=(4.4, 2.9))
        figure.subplots_adjust(left=0.21, right=0.97, bottom=0.17, top=0.91)
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        axes.plot(*zip(*points, strict=True), ".-")
        axes.grid(axis="y")
        axes.ticklabel_format(axis="y", scilimits=(-2, 5))  # longer figures would meet the label
        if x_label == "delta":
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
    uri = _encode_uri("svg+xml", sink)
    return Markup('<img class="chart" src="{}" alt="{} by {}">').format(uri, y_label, x_label)


def _draw_by_iteration(rows: Sequence[Row], names: Sequence[str]) -> list[Markup]:
    """Draw a chart of each name that has a value at all."""
    points = {
        name: [(row["iteration"], row[name]) for row in rows if row.get(name) is not None]
        for name in names
    }
    return [draw_chart(p, "iteration", name.replace("_", " ")) for name, p in points.items() if p]


def bound_certainty(epsilon: float, delta: float) -> float:
    """Return how often a guess whether a unit was in the data can be right, with even odds before.

    (e^epsilon + delta) / (e^epsilon + 1): Kairouz, Oh, Viswanath 2015, theorem 2.1.
    """
    return (1 + delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon))


def render_run(facts: Facts, samples: Samples, rows: Sequence[Row]) -> str:
    """Return report.html; samples: of each population in `facts`; rows: its scores."""
    curve, metrics = compute_privacy_curve(facts), list_metrics(rows)
    voted = [row for row in rows if "survivors" in row]
    counted, scores = facts.ledger.released(LABEL_COUNTS), last_scores(facts)
    return render(
        "run.html",
        facts=facts,
        config=facts.config,
        budget=facts.budget,
        private=not math.isinf(facts.spent),
        certainty=bound_certainty(facts.spent, facts.budget.delta),
        scores=scores,
        better=name_better(facts.config, [*metrics, *scores]),
        settings=yaml.safe_dump(
            facts.config.tree(), sort_keys=False, allow_unicode=True, default_flow_style=None
        ),
        samples=samples,
        most_labels=LABELS_SHOWN,
        thumbnail=THUMBNAIL,
        fractions=None if counted is None else fractions_of(counted),
        curve=curve,
        curve_chart=draw_chart(curve, "delta", "epsilon") if curve else None,
        rows=rows,
        voted=voted,
        vote_charts=_draw_by_iteration(voted, _VOTE_CHARTS),
        metrics=metrics,
        metric_charts=_draw_by_iteration(rows, metrics),
    )

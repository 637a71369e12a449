"""A run as one HTML page: no request leaves it, no script runs in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pe_ray.release.releases import LABEL_COUNTS
from pe_ray.report.charts import Point, draw_chart
from pe_ray.report.facts import (
    CURVE_DELTAS,
    LARGE_DELTAS,
    Facts,
    bound_guessing,
    compute_privacy_curve,
    list_stage_times,
)
from pe_ray.report.lineage import trace_lineages
from pe_ray.report.samples import (
    LABELS_SHOWN,
    PIXEL_ART,
    THUMBNAIL,
    Image,
    encode_image,
    join_images,
    pick_evenly,
)
from pe_ray.report.score_tables import Row, is_number, list_metrics
from pe_ray.synthetic.population import fractions_of

_VOTE_CHARTS = {
    "survivors": "samples with votes left",
    "effective_parents": "effective parents",
    "top_tenth_share": "share of the top tenth",
}
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
    return f"{value:,.4g}" if is_number(value) else str(value)


def _tile(images: Sequence[Image], columns: int) -> dict[str, Any]:
    """Join images; return the data, the size in pixels and whether pixels stay hard."""
    joined = join_images([images[i : i + columns] for i in range(0, len(images), columns)])
    side = max(images[0].shape[:2])
    small = side <= PIXEL_ART
    zoom = max(1, (28 if columns == 2 else 56) // side) if small else 1
    return {
        "uri": encode_image(joined, lossless=small),
        "width": joined.shape[1] * zoom,
        "height": joined.shape[0] * zoom,
        "hard": small,
    }


def render_run(facts: Facts, samples: Samples, rows: Sequence[Row]) -> str:
    """Return report.html; samples: of each population in `facts`; rows: its scores."""
    curve = compute_privacy_curve(facts)
    guessing = bound_guessing(compute_privacy_curve(facts, (*CURVE_DELTAS, *LARGE_DELTAS)))
    counted = facts.ledger.released(LABEL_COUNTS)
    metrics = list_metrics(rows)
    return render(
        "run.html",
        facts=facts,
        config=facts.config,
        budget=facts.budget,
        private=not math.isinf(facts.spent),
        settings=yaml.safe_dump(
            facts.config.tree(), sort_keys=False, allow_unicode=True, default_flow_style=None
        ),
        samples=samples,
        lineages=trace_lineages(facts),
        most_labels=LABELS_SHOWN,
        thumbnail=THUMBNAIL,
        guessing=math.ceil(1000 * guessing) / 10,  # percent, never rounded down
        fractions=None if counted is None else fractions_of(counted),
        curve=[(d, e) for d, e in curve if math.log10(d).is_integer() or d == facts.budget.delta],
        curve_chart=_draw_curve(facts, curve) if curve else None,
        rows=rows,
        vote_charts=[
            _draw_by_iteration(rows, name, label, y_from=0.0)
            for name, label in _VOTE_CHARTS.items()
            if any(is_number(row.get(name)) for row in rows)
        ],
        metrics=metrics,
        metric_charts=[_draw_by_iteration(rows, name, name) for name in metrics],
        times=list_stage_times(facts),
    )


def _draw_curve(facts: Facts, curve: Sequence[Point]) -> Markup:
    delta, spent = facts.budget.delta, facts.spent
    return draw_chart(
        "Epsilon of this run at every delta",
        f"Epsilon falls as delta grows; at delta {delta:g} it is {spent:.4g}.",
        x_label="delta",
        y_label="epsilon",
        line=curve,
        dots={f"ε {spent:.4g}, δ {delta:g}": (delta, spent)},
        log_x=True,
        y_from=0.0,
        size=(440, 270),
    )


def _draw_by_iteration(
    rows: Sequence[Row], name: str, label: str, y_from: float | None = None
) -> Markup:
    points = [(row["iteration"], row[name]) for row in rows if is_number(row.get(name))]
    (first, start), (last, end) = points[0], points[-1]
    return draw_chart(
        label,
        f"From {start:.4g} in iteration {first} to {end:.4g} in iteration {last}.",
        x_label="iteration",
        y_label=label,
        line=points,
        y_from=y_from,
    )

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

from pe_ray.report.charts import Axis, Series, line_chart
from pe_ray.report.facts import Facts, guessing_bound, privacy_curve, stage_times
from pe_ray.report.lineage import Lineage
from pe_ray.report.samples import (
    ITERATIONS_SHOWN,
    LABELS_SHOWN,
    PIXEL_ART,
    THUMBNAIL,
    Image,
    chosen,
    data_uri,
    strip,
)
from pe_ray.report.score_tables import Row, is_number, metric_names
from pe_ray.synthetic.population import fractions_of
from pe_ray.values import LabelLayout

Shown = Sequence[tuple[int, LabelLayout, Mapping[int, Sequence[Image]]]]
"""(iteration, layout, label -> samples) of the populations, in order."""

Picture = dict[str, Any]
"""What the template's `picture` needs."""

_SMALL = (280, 190)


@cache
def templates() -> Environment:
    """The templates; everything put into them is escaped, and a missing name is an error."""
    made = Environment(
        loader=PackageLoader("pe_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["figure"] = figure
    return made


def figure(value: Any) -> str:
    """A number for a table cell; a dash where there is none."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if is_number(value) else str(value)


def run_page(
    facts: Facts,
    shown: Shown,
    lineages: Sequence[Lineage],
    rows: Sequence[Row],
    spreads: Sequence[tuple[int, Sequence[tuple[float, float]]]],
) -> str:
    """report.html."""
    config, curve = facts.config, privacy_curve(facts)
    counted = facts.ledger.released("label_counts")
    times = list(stage_times(facts))
    timed = [time.seconds for time in times if time.seconds is not None]
    return (
        templates()
        .get_template("run.html")
        .render(
            version=version("pe_ray"),
            name=facts.run.path.name,
            config=config,
            fingerprint=config.fingerprint,
            settings=yaml.safe_dump(
                config.tree(),
                sort_keys=False,
                allow_unicode=True,
                default_flow_style=None,
                width=90,
            ),
            budget=facts.budget,
            spent=facts.spent,
            private=not math.isinf(facts.spent),
            done=len(facts.layouts) - 1,
            num_final=facts.num_final,
            entries=facts.entries,
            sums=any(entry.release.kind == "sums" for entry in facts.entries),
            shares=_shares(facts),
            guessing=math.ceil(1000 * guessing_bound(facts)) / 10,  # percent, never rounded down
            curve=[point for point in curve if _decade(point[0]) or point[0] == facts.budget.delta],
            curve_chart=_curve_chart(facts, curve),
            fractions=None if counted is None else fractions_of(counted),
            final=_strips(shown[-1]) if shown else [],
            last=shown[-1][0] if shown else 0,
            iterations=[shown[place][0] for place in chosen(len(shown), ITERATIONS_SHOWN)],
            evolution=_evolution(shown),
            lineages=[_lineage(line) for line in lineages],
            sigma_note=_sigmas(facts),
            labels_left=max(0, sum(n > 0 for n in shown[0][1].counts) - LABELS_SHOWN)
            if shown
            else 0,
            thumbnail=THUMBNAIL
            if max(config.image_shape.height, config.image_shape.width) > THUMBNAIL
            else 0,
            rows=rows,
            vote_rows=[row for row in rows if "survivors" in row],
            metric_names=metric_names(list(rows)),
            charts=_vote_charts(rows, spreads),
            metric_charts=[_by_iteration(rows, name, name) for name in metric_names(list(rows))],
            times=times,
            total_seconds=sum(timed),
            total_calls=sum(time.calls for time in times),
            partly=any(t.rows_made is not None and t.rows_made < t.rows for t in times),
            untimed=len(timed) < len(times),
        )
    )


def _sigmas(facts: Facts) -> str:
    """Sigma of the votes in words, for a sentence."""
    sigmas = [e.release.sigma for e in facts.entries if e.release.kind == "votes"]
    if not sigmas:
        return ""
    low, high = min(sigmas), max(sigmas)
    return f" ({low:.3g})" if low == high else f" ({low:.3g} to {high:.3g})"


def _shares(facts: Facts) -> list[float | None]:
    """Each release's share of the sum of mu^2 = votes_per_unit / sigma^2."""
    total = math.fsum(entry.mu_squared or 0.0 for entry in facts.entries)
    return [None if e.mu_squared is None else e.mu_squared / total for e in facts.entries]


def _decade(delta: float) -> bool:
    return math.log10(delta).is_integer()


def _curve_chart(facts: Facts, curve: Sequence[tuple[float, float]]) -> Markup | None:
    if not curve:
        return None
    budget = facts.budget
    return line_chart(
        "Epsilon of this run at every delta",
        f"Epsilon falls as delta grows; at delta {budget.delta:g} it is {facts.spent:.4g}.",
        [Series(points=curve)],
        Axis(label="delta", logarithmic=True),
        Axis(label="epsilon", low=0.0),
        mark=((budget.delta, facts.spent), f"ε {facts.spent:.4g}, δ {budget.delta:g}"),
    )


def _strips(population: tuple[int, LabelLayout, Mapping[int, Sequence[Image]]]) -> list[Any]:
    """(label, how many there are, how many are shown, picture) of each label."""
    _, layout, samples = population
    return [
        (label, layout.counts[label], len(images), picture(images, len(images)))
        for label, images in samples.items()
    ]


def _evolution(shown: Shown) -> list[Any]:
    """(label, [picture of four samples in each of the iterations shown])."""
    if not shown:
        return []
    places = chosen(len(shown), ITERATIONS_SHOWN)
    return [
        (label, [picture(_four(shown[place][2][label]), 2) for place in places])
        for label in shown[0][2]
    ]


def _four(images: Sequence[Image]) -> list[Image]:
    return [images[place] for place in chosen(len(images), 4)]


def _lineage(line: Lineage) -> Any:
    places = chosen(len(line.ancestors), ITERATIONS_SHOWN)
    ancestors = [line.ancestors[place] for place in places]
    return line.label, [(ancestor, picture([ancestor.image], 1)) for ancestor in ancestors]


def picture(images: Sequence[Image], columns: int) -> Picture:
    """Address of the data, size on the page in pixels, and whether pixels stay hard."""
    joined, side = strip(images, columns), max(images[0].shape[:2])
    zoom = max(1, 56 // side) if side <= PIXEL_ART else 1
    if columns == 2:
        zoom = max(1, zoom // 2)
    return {
        "uri": data_uri(joined, side),
        "width": joined.shape[1] * zoom,
        "height": joined.shape[0] * zoom,
        "hard": side <= PIXEL_ART,
    }


def _vote_charts(
    rows: Sequence[Row], spreads: Sequence[tuple[int, Sequence[tuple[float, float]]]]
) -> list[Markup]:
    charts = []
    for name, words in (
        ("survivors", "samples with votes left"),
        ("effective_parents", "effective parents"),
    ):
        if any(is_number(row.get(name)) for row in rows):
            charts.append(_by_iteration(rows, name, words, low=0.0))
    if spreads:
        charts.append(
            line_chart(
                "Concentration of votes",
                "Share of all votes held by the heaviest share of samples, after denoising.",
                [Series(points=curve, name=f"iteration {t}") for t, curve in spreads],
                Axis(label="share of samples, heaviest first", low=0.0, high=1.0),
                Axis(label="share of votes", low=0.0, high=1.0),
                size=_SMALL,
            )
        )
    return charts


def _by_iteration(rows: Sequence[Row], name: str, words: str, low: float | None = None) -> Markup:
    points = [(float(r["iteration"]), float(r[name])) for r in rows if is_number(r.get(name))]
    return line_chart(
        words,
        f"From {points[0][1]:.4g} in iteration {points[0][0]:.0f} to {points[-1][1]:.4g} in "
        f"iteration {points[-1][0]:.0f}.",
        [Series(points=points)],
        Axis(label="iteration", whole=True),
        Axis(label=words, low=low),
        size=_SMALL,
    )

"""Charts as inline SVG, drawn with matplotlib and coloured by the page's style sheet."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Point = tuple[float, float]

_COLORS = ("#1f5fae", "#b0470d", "#1c7a4d", "#7a3fa0", "#5b6470")
_GRID, _AXIS = "#cdd4df", "#566072"
_THEMED = {color: f"var(--c{place})" for place, color in enumerate(_COLORS)} | {
    _GRID: "var(--rule)",
    _AXIS: "var(--soft)",
}
"""Colour as drawn -> in the page, where it depends on light, dark or print."""


def draw_chart(
    title: str,
    description: str,
    *,
    x_label: str,
    y_label: str,
    line: Sequence[Point] = (),
    dots: Mapping[str, Point] | None = None,
    log_x: bool = False,
    y_from: float | None = None,
    size: tuple[int, int] = (300, 200),
) -> Markup:
    """Return an SVG element; equal arguments give equal bytes.

    title, description: for screen readers; a title is unique within a page.
    dots: points with their names. size: width and height in pixels.
    """
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11}
    with style.context(["default", settings]):
        inches = (size[0] / 72, size[1] / 72)
        figure = Figure(figsize=inches, layout="constrained", facecolor="none")
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, facecolor="none")
        if line:
            axes.plot(*zip(*line, strict=True), ".-", color=_COLORS[0], clip_on=False)
        for place, (name, point) in enumerate((dots or {}).items()):
            color = _COLORS[place % len(_COLORS)]
            axes.plot(*point, "o", color=color, clip_on=False)
            axes.annotate(name, point, (7, 4), textcoords="offset points")
        if log_x:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=bool(line), min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_ylim(bottom=y_from)
        axes.grid(axis="y", color=_GRID)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_AXIS)
        axes.tick_params(color=_AXIS, left=False)
        drawn = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(drawn, metadata=nothing)
    label = escape(f"{title}. {description}")
    head = f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{label}">'
    return Markup(head + _theme(drawn.getvalue()))


def _theme(drawn: str) -> str:
    """Return the content of an SVG file with the page's colours.

    Drops the ids of groups, which repeat in each chart. Ids of shapes are hashes of their salt.
    """
    content = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
    content = re.sub(r'<g id="[^"]*"', "<g", content)
    return re.sub('#[0-9a-f]{6}(?=[;"])', lambda c: _THEMED.get(c[0], "currentColor"), content)

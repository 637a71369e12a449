"""Line charts as inline SVG: no script, colours from the page's style, readable in print."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 14.0, 12.0, 46.0
_CHARACTER = 7.2  # pixels of a letter's width, about
_STYLES = 5
"""Line styles that the page's style sheet knows: .s0 to .s4."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line or, with `dots_only`, loose points."""

    points: Sequence[Point]
    name: str = ""
    dots_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What is along an axis.

    logarithmic: values must be above 0; whole: only whole numbers are written; low, high: widen the
    range.
    """

    label: str
    logarithmic: bool = False
    whole: bool = False
    low: float | None = None
    high: float | None = None


def line_chart(
    title: str,
    description: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    mark: tuple[Point, str] | None = None,
    size: tuple[int, int] = (440, 270),
) -> Markup:
    """An SVG with both axes; title and description are read out, `mark` is one point with words."""
    points = [point for line in series for point in line.points]
    width, height = size
    to_x, x_ticks = _scale(x, [p[0] for p in points], _LEFT, width - _RIGHT)
    to_y, y_ticks = _scale(y, [p[1] for p in points], height - _BOTTOM, _TOP)
    drawn = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}. {escape(description)}">'
    ]
    for value in y_ticks:
        at = to_y(value)
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" {_ys(at, at)}/>')
        drawn.append(_text(_LEFT - 6, at + 4, _number(value, y.logarithmic), "end"))
    for value in x_ticks:
        at, foot = to_x(value), height - _BOTTOM
        drawn.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" {_ys(foot, foot + 4)}/>')
        drawn.append(_text(at, foot + 18, _number(value, x.logarithmic), "middle"))
    foot = height - _BOTTOM
    drawn.append(f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" {_ys(foot, foot)}/>')
    drawn.append(_text((_LEFT + width - _RIGHT) / 2, height - 8, x.label, "middle"))
    middle = (_TOP + foot) / 2
    turned = f'transform="rotate(-90 12 {middle:.1f})"'
    drawn.append(_text(12, middle, y.label, "middle", turned))
    for number, line in enumerate(series):
        places = [(to_x(a), to_y(b)) for a, b in line.points]
        drawn.append(_line(line, places, f"s{number % _STYLES}"))
    drawn += _names(series, to_x, to_y, size)
    if mark is not None:
        (a, b), words = mark
        left, top = to_x(a), to_y(b)
        drawn.append(f'<circle class="mark" cx="{left:.1f}" cy="{top:.1f}" r="5"/>')
        fits = left + 9 + _CHARACTER * len(words) <= width
        anchor, shift = ("start", 9) if fits else ("end", -9)
        drawn.append(_text(left + shift, top - 9, words, anchor, 'class="strong"'))
    return Markup("".join(drawn) + "</svg>")


def _names(
    series: Sequence[Series],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    size: tuple[int, int],
) -> list[str]:
    """Names of dots beside them, moved down where they would cover another; of lines, at the foot
    on the right, where rising curves leave room."""
    named = [(line, number) for number, line in enumerate(series) if line.name and line.points]
    foot = size[1] - _BOTTOM - 8 - 15 * sum(not line.dots_only for line, _ in named)
    dots = sorted((pair for pair in named if pair[0].dots_only), key=lambda p: -p[0].points[-1][1])
    taken, drawn = -math.inf, []
    for line, number in named:
        if not line.dots_only:
            foot += 15
            drawn.append(_text(size[0] - _RIGHT - 6, foot, line.name, "end", _name_style(number)))
    for line, number in dots:
        left, top = to_x(line.points[-1][0]), to_y(line.points[-1][1]) - 8
        taken = top = max(top, taken + 14, _TOP + 10)
        fits = left + 9 + _CHARACTER * len(line.name) <= size[0]
        anchor, shift = ("start", 8) if fits else ("end", -8)
        drawn.append(_text(left + shift, top, line.name, anchor, _name_style(number)))
    return drawn


def _name_style(number: int) -> str:
    return f'class="n{number % _STYLES}"'


def _line(line: Series, places: Sequence[Point], style: str) -> str:
    dots = ""
    if line.dots_only or len(places) <= 24:
        radius = 4.5 if line.dots_only else 2.5
        dots = "".join(
            f'<circle class="dot {style}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>'
            for a, b in places
        )
    if line.dots_only:
        return dots
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    return f'<polyline class="line {style}" points="{path}"/>{dots}'


def _scale(
    axis: Axis, values: Sequence[float], start: float, stop: float
) -> tuple[Callable[[float], float], list[float]]:
    """Value -> position, and the values to write."""
    low = min([*values, *([] if axis.low is None else [axis.low])])
    high = max([*values, *([] if axis.high is None else [axis.high])])
    if axis.logarithmic:
        ticks = _decades(low, high)
        low, high = math.log10(min(low, ticks[0])), math.log10(max(high, ticks[-1]))
        span = high - low or 1.0
        return lambda value: start + (stop - start) * (math.log10(value) - low) / span, ticks
    ticks = _nice(low, high, 1.0 if axis.whole else 0.0)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    span = high - low or 1.0
    return lambda value: start + (stop - start) * (value - low) / span, ticks


def _nice(low: float, high: float, least: float) -> list[float]:
    """About five round values that cover low..high, at least `least` apart."""
    if high == low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = max((high - low) / 4, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    step = max(1, -(-(last - first) // 6))
    return [10.0**number for number in range(last, first - 1, -step)][::-1]


def _number(value: float, logarithmic: bool) -> str:
    if logarithmic:
        exponent = round(math.log10(value))
        return f"1e{exponent}" if abs(exponent) > 3 else f"{value:g}"
    if abs(value) >= 10_000:
        for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:g}{suffix}"
    return f"{round(value, 10):g}"


def _text(x: float, y: float, words: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(words)}</text>'


def _ys(top: float, bottom: float) -> str:
    return f'y1="{top:.1f}" y2="{bottom:.1f}"'

"""Charts: well-formed, to scale, the same each time, and safe with any text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import pytest

from pe_ray.report.charts import Point, draw_chart

XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink"'


def draw(points: list[Point], title: str = "a<b", log_x: bool = False) -> ElementTree.Element:
    text = str(draw_chart(title, "d", x_label="x&", y_label="y", line=points, log_x=log_x))
    return ElementTree.fromstring(text.replace("<svg", f"<svg {XLINK}", 1))


def places(chart: ElementTree.Element) -> list[Point]:
    """Return the corners of the line, the only path in the first series colour."""
    (line,) = (
        path.attrib["d"]
        for path in chart.iter("path")
        if "var(--c0)" in path.attrib["style"] and "fill: none" in path.attrib["style"]
    )
    corners = re.findall(r"[ML] ([\d.]+) ([\d.]+)", line)
    return [(float(x), float(y)) for x, y in corners]


def ticks(chart: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in chart.iter("text")]


def test_points_are_to_scale() -> None:
    chart = draw([(0, 0), (5, 10), (10, 25)])
    first, middle, last = places(chart)
    assert middle[0] - first[0] == pytest.approx(last[0] - middle[0], abs=0.01)
    assert first[1] - middle[1] == pytest.approx((middle[1] - last[1]) / 1.5, abs=0.01)  # up: less
    assert first[1] > middle[1]


def test_decades_are_evenly_spaced() -> None:
    spots = places(draw([(1e-9, 3), (1e-6, 2), (1e-3, 1)], log_x=True))
    assert spots[1][0] - spots[0][0] == pytest.approx(spots[2][0] - spots[1][0], abs=0.01)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-7, 123456.0])
def test_one_point_and_flat_lines_can_be_drawn(value: float) -> None:
    for points in ([(1.0, value)], [(1.0, value), (2.0, value)]):
        chart = draw(points)
        assert "1" in ticks(chart)  # iterations are whole
        dots = [use.attrib for use in chart.iter("use") if "var(--c0)" in use.attrib["style"]]
        assert len(dots) == len(points)
        assert all(0 < float(dot["x"]) < 300 and 0 < float(dot["y"]) < 200 for dot in dots)


def test_words_are_escaped_and_read_out() -> None:
    chart = draw([(1, 2)])
    assert chart.attrib["aria-label"] == "a<b. d"
    assert chart.attrib["role"] == "img"
    assert "x&" in ticks(chart)
    dots = draw_chart("t", "d", x_label="x", y_label="y", dots={"<b>": (1, 2)})
    assert "&lt;b&gt;" in dots
    assert "<b>" not in dots


def test_equal_charts_are_equal_bytes_and_others_share_no_id() -> None:
    def draw_again(title: str) -> str:
        return str(draw_chart(title, "d", x_label="x", y_label="y", line=[(1, 2), (2, 3)]))

    assert draw_again("t") == draw_again("t")
    one, other = (set(re.findall(r'\bid="([^"]*)"', draw_again(title))) for title in "tu")
    assert one
    assert not one & other


def test_no_color_is_fixed_and_no_global_setting_changes() -> None:
    before = dict(matplotlib.rcParams)
    chart = draw_chart("t", "d", x_label="x", y_label="y", line=[(1, 2)], dots={"n": (1, 2)})
    assert not re.findall(r"#[0-9a-f]{6}[;\"]", chart)
    assert dict(matplotlib.rcParams) == before

"""Charts: well-formed, to scale, and safe with any text."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from pe_ray.report.charts import Axis, Series, line_chart


def draw(points: list[tuple[float, float]], x: Axis, y: Axis) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart("t", "d", [Series(points=points, name="a<b")], x, y))


def places(chart: ElementTree.Element) -> list[tuple[float, float]]:
    line = chart.find("polyline")
    assert line is not None
    pairs = (pair.split(",") for pair in line.attrib["points"].split())
    return [(float(a), float(b)) for a, b in pairs]


def test_points_are_to_scale() -> None:
    chart = draw([(0, 0), (5, 10), (10, 20)], Axis(label="x"), Axis(label="y"))
    first, middle, last = places(chart)
    assert first[0] < middle[0] < last[0]
    assert first[1] > middle[1] > last[1]  # up on the page is less
    assert middle[0] - first[0] == pytest.approx(last[0] - middle[0], abs=0.2)
    assert middle[1] - first[1] == pytest.approx(last[1] - middle[1], abs=0.2)
    assert "a<b" in [text.text for text in chart.iter("text")]


def test_decades_are_evenly_spaced() -> None:
    axis = Axis(label="delta", logarithmic=True)
    spots = places(draw([(1e-9, 3), (1e-6, 2), (1e-3, 1)], axis, Axis(label="epsilon")))
    assert spots[1][0] - spots[0][0] == pytest.approx(spots[2][0] - spots[1][0], abs=0.2)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-7, 123456.0])
def test_one_point_and_flat_lines_can_be_drawn(value: float) -> None:
    for points in ([(1.0, value)], [(1.0, value), (2.0, value)]):
        spots = places(draw(points, Axis(label="i", whole=True), Axis(label="v")))
        assert all(0 < a < 440 and 0 < b < 270 for a, b in spots)


def test_whole_axes_have_whole_ticks() -> None:
    chart = draw([(1, 0), (2, 1)], Axis(label="i", whole=True), Axis(label="v"))
    ticks = [text.text for text in chart.iter("text") if float(text.attrib["y"]) == 242.0]
    assert ticks == ["1", "2"]

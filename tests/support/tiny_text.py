"""Rendered text in a few rows, and what its tests compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pe_ray.components.generators.rendered_text import RenderedText, RenderedTextOptions
from pe_ray.plugins import Rows
from pe_ray.plugins.seeds import Seeds, row_seeds

DIGITS = [str(digit) for digit in range(10)]
BUNDLE = Path(pytest.importorskip("matplotlib").get_data_path()) / "fonts" / "ttf"


def make(names: list[str] | None = None, **options: Any) -> RenderedText:
    return RenderedText(RenderedTextOptions(**options), DIGITS if names is None else names)


def seeds(num: int, iteration: int = 0) -> Seeds:
    return row_seeds(0, "random", iteration, np.arange(num, dtype=np.int64))


def draw(generator: RenderedText, num: int, num_labels: int = 10) -> Rows:
    labels = (np.arange(num) % num_labels).astype(np.int32)
    return {**generator.random(labels, seeds(num)), "label": labels}


def take(rows: Rows, index: Any) -> Rows:
    return {name: values[index].copy() for name, values in rows.items()}


def assert_same(left: Rows, right: Rows) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert np.array_equal(values, right[name]), name

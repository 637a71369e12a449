"""Files of equal content are refused by name, wherever they lie, unless they are meant."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from pe_ray.components.embedders.pixels import Pixels
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.kinds import Plugin
from pe_ray.errors import InputError
from pe_ray.private.duplicates import list_suspects
from pe_ray.private.record_embeddings import open_records
from pe_ray.values import Framing, ImageShape

FRAMING = Framing(shape=ImageShape(height=4, width=4, channels=1))
PIXELS = Plugin(plugin_type="embedder", kind="pixels", options=Pixels.Options(size=4))


def bmp(value: int) -> bytes:
    """Files of one size, whatever they show."""
    sink = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(sink, format="BMP")
    return sink.getvalue()


def count(data: Path, **changes: Any) -> int:
    config = PrivateConfig(data=str(data), labels=("cat", "dog"), cache="none", **changes)
    records = open_records(config, framing=FRAMING, embedder=PIXELS)
    pieces = [ray.get(piece) for pieces in records.partitions for piece in pieces]
    return sum(len(piece.labels) for piece in pieces)


@pytest.mark.parametrize("form", ["images", "parquet", "list"])
def test_files_of_equal_content_are_refused_by_name(
    ray_session: None, tmp_path: Path, form: str
) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    if form == "parquet":
        first, second = tmp_path / "x.parquet", tmp_path / "x (1).parquet"
        pq.write_table(pa.table({"image": [bmp(1)] * 3, "label": ["cat"] * 3}), first)
        rows = 3
    else:
        first, second = tmp_path / "cat" / "1.bmp", tmp_path / "dog" / "x.bmp"
        for number in range(1, 4):
            (tmp_path / "cat" / f"{number}.bmp").write_bytes(bmp(number))
        rows = 3
    if form == "list":
        names = ["cat/1.bmp", "cat/2.bmp", "cat/3.bmp", "dog/x.bmp"]
        lines = ["file_name,label", *(f"{name},{name[:3]}" for name in names[:3])]
        (tmp_path / "metadata.csv").write_text("\n".join(lines))
    assert count(tmp_path) == rows
    shutil.copy(first, second)
    if form == "list":
        (tmp_path / "metadata.csv").write_text("\n".join([*lines, "dog/x.bmp,dog"]))
    with pytest.raises(InputError, match=r"^private\.data: .*allow") as caught:
        count(tmp_path)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)
    added = rows if form == "parquet" else 1
    assert count(tmp_path, duplicates="allow") == rows + added


def test_only_files_of_equal_size_are_read() -> None:
    files = [("a", 1), ("b", 2), ("c", 1), ("d", 3)]
    assert sorted(list_suspects(files)) == ["a", "c"]


def test_a_file_that_is_listed_twice_is_refused(ray_session: None, tmp_path: Path) -> None:
    """Within a folder's list, or one that is given itself."""
    for number in range(2):
        (tmp_path / f"{number}.bmp").write_bytes(bmp(number))
    rows = ["file_name,label", "0.bmp,cat", "1.bmp,dog"]
    for data in (tmp_path / "metadata.csv", tmp_path):
        (tmp_path / "metadata.csv").write_text("\n".join(rows))
        assert count(data) == 2
        (tmp_path / "metadata.csv").write_text("\n".join([*rows, "./0.bmp,dog"]))
        with pytest.raises(InputError, match=r"^private\.data: .*0\.bmp and .*0\.bmp"):
            count(data)

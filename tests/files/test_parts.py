"""A stage is complete or redone; a population file has no column it may not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pe_ray.components.generators.rendered_text import RenderedText
from pe_ray.files.parts import (
    MAX_PART_BYTES,
    commit,
    divide_rows,
    find_parts,
    list_parts,
    read_manifest,
    write_part,
)
from pe_ray.plugins import Rows
from pe_ray.synthetic.population_files import population_part, read_population

OPTIONS = RenderedText.Options(image_size=8)


def rows(start: int, stop: int) -> Rows:
    ids = np.arange(start, stop, dtype=np.int64)
    own = {
        name: np.tile(ids[:, None], (1, width))
        .astype(dtype)
        .reshape((-1, width)[: 1 + (width > 1)])
        for name, (dtype, width) in OPTIONS.columns.items()
    }
    image = np.repeat(ids, 64).reshape(-1, 8, 8, 1).astype(np.uint8)
    degree = np.where(ids % 2, 0.5, np.nan).astype(np.float32)
    label, parent = (ids // 10).astype(np.int32), ids - 1
    return {"id": ids, "label": label, "parent": parent, "degree": degree, "image": image, **own}


def written(folder: Path) -> None:
    parts = [
        write_part(folder, a, b, "parquet", population_part(rows(a, b), OPTIONS))
        for a, b in ((0, 7), (7, 20))
    ]
    (folder / "part-0000000000-0000000003.parquet").write_bytes(b"from another layout")
    commit(folder, parts, {"label_counts": [10, 10]})


def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    written(tmp_path)
    ids = np.array([19, 0, 7, 7, 6])
    read = read_population(tmp_path, ids, OPTIONS)
    for name, values in rows(0, 20).items():
        assert np.array_equal(read[name], values[ids], equal_nan=name == "degree"), name
    assert len(list(tmp_path.glob("part-*"))) == 2


def test_a_torn_or_missing_part_undoes_the_stage(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    written(tmp_path)
    assert read_manifest(tmp_path) is not None
    part = list_parts(tmp_path)[1]
    (tmp_path / part.file).write_bytes((tmp_path / part.file).read_bytes()[:-1])
    assert read_manifest(tmp_path) is None
    whole, torn = find_parts(tmp_path, [(0, 7), (7, 20)], "parquet")
    assert whole is not None
    assert torn is None  # and so made again


def test_unknown_columns_cannot_be_written() -> None:
    with pytest.raises(AssertionError, match="exactly the columns"):
        population_part({**rows(0, 3), "raw_votes": np.arange(3)}, OPTIONS)


@pytest.mark.parametrize(
    ("num_rows", "row_bytes"), [(1, 1), (2000, 784), (10**6, 3072), (9, 10**9)]
)
def test_parts_cover_all_rows_and_stay_small(num_rows: int, row_bytes: int) -> None:
    ranges = divide_rows(num_rows, row_bytes, None)
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == num_rows
    assert all((b - a) * row_bytes <= max(row_bytes, MAX_PART_BYTES) for a, b in ranges)

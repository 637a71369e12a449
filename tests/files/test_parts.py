"""A stage is complete or redone; a population file has no column it may not have."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pe_ray.components.generators.rendered_text import RenderedText
from pe_ray.errors import DamagedFileError
from pe_ray.files.parts import (
    MANIFEST,
    MAX_PART_BYTES,
    commit,
    divide_rows,
    find_parts,
    list_parts,
    read_manifest,
    remove_damaged,
    require_whole,
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


RANGES = [(0, 7), (7, 20)]


def flipped(content: bytes, place: int) -> bytes:
    held = bytearray(content)
    held[place] ^= 1 << place % 8
    return bytes(held)


def written(folder: Path) -> None:
    parts = [
        write_part(folder, a, b, "parquet", population_part(rows(a, b), OPTIONS)) for a, b in RANGES
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
    whole, torn = find_parts(tmp_path, RANGES, "parquet")
    assert whole is not None
    assert torn is None  # and so made again


def test_no_flip_in_a_part_is_silent(tmp_path: Path) -> None:
    """Of every byte: the footer, which holds no values, counts too."""
    written(tmp_path)
    file = tmp_path / list_parts(tmp_path)[0].file
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(flipped(whole, place))
        with pytest.raises(DamagedFileError) as damaged:
            read_population(tmp_path, np.array([3, 19]), OPTIONS)
        assert damaged.value.file == str(file)
    assert len(read_population(tmp_path, np.array([19]), OPTIONS)["id"]) == 1  # of another part
    assert read_manifest(tmp_path) is not None  # listing reads no part
    remove_damaged(tmp_path)
    assert find_parts(tmp_path, RANGES, "parquet")[0] is None
    assert read_manifest(tmp_path) is None


def test_no_flip_in_a_manifest_is_silent(tmp_path: Path) -> None:
    written(tmp_path)
    stated, whole = read_manifest(tmp_path), (tmp_path / MANIFEST).read_bytes()
    for place in range(len(whole)):
        (tmp_path / MANIFEST).write_bytes(flipped(whole, place))
        assert read_manifest(tmp_path) is None
        assert find_parts(tmp_path, RANGES, "parquet") == [None, None]
    (tmp_path / MANIFEST).write_bytes(whole)
    assert read_manifest(tmp_path) == stated


def test_parts_of_a_killed_start_have_their_digests(tmp_path: Path) -> None:
    """Until the manifest states them, from one listing; no mark is left after that."""
    made = [write_part(tmp_path, *span, "npy", b"values %d" % span[0]) for span in RANGES]
    assert find_parts(tmp_path, RANGES, "npy") == made
    (tmp_path / made[1].file).write_bytes(b"Values 7")
    remove_damaged(tmp_path)
    assert find_parts(tmp_path, RANGES, "npy") == [made[0], None]
    again = write_part(tmp_path, *RANGES[1], "npy", b"values 7")
    assert again == made[1]
    commit(tmp_path, made, {})
    assert {file.name for file in tmp_path.iterdir()} == {MANIFEST, *(part.file for part in made)}
    assert find_parts(tmp_path, RANGES, "npy") == list_parts(tmp_path) == made


def test_a_part_that_was_written_twice_with_other_content_is_made_again(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        write_part(tmp_path, 0, 7, "npy", content)
    assert find_parts(tmp_path, [(0, 7)], "npy") == [None]


def test_parts_of_a_version_without_digests_are_taken_as_they_are(tmp_path: Path) -> None:
    part = write_part(tmp_path, 0, 7, "npy", b"values")
    for mark in tmp_path.glob(".digest-*"):
        mark.unlink()
    old = replace(part, digest="")
    assert find_parts(tmp_path, [(0, 7)], "npy") == [old]
    manifest = asdict(old)
    del manifest["digest"]
    (tmp_path / MANIFEST).write_text(json.dumps({"num_rows": 7, "parts": [manifest]}))
    assert list_parts(tmp_path) == find_parts(tmp_path, [(0, 7)], "npy") == [old]
    remove_damaged(tmp_path)
    require_whole(tmp_path)
    commit(tmp_path, [old], {})
    assert list_parts(tmp_path) == [part]  # later changes are noticed


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

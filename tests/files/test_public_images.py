"""Public images: every layout reads alike, evenly spaced, and a wrong setting is named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pe_ray import InputError
from pe_ray.components.generators.cached_images import CachedImages
from pe_ray.files.public_images import (
    PublicSource,
    check_public,
    count_images,
    evenly_spaced,
    read_public,
)
from pe_ray.values import ImageShape

SHAPE = ImageShape(height=5, width=4, channels=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (200, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(200) % 2
NAMES = ("cat", "dog")


def png(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="PNG")
    return sink.getvalue()


def source(data: Path | str, **changes: Any) -> PublicSource:
    return PublicSource(block="metrics.public", data=str(data), **changes)


def parquet(folder: Path, **columns: Any) -> Path:
    """Two files, the second with the last 70 rows."""
    table = pa.table({"image": [png(image) for image in IMAGES], "label": LABELS} | columns)
    pq.write_table(table.slice(0, 130), folder / "a.parquet")
    pq.write_table(table.slice(130), folder / "b.parquet")
    return folder


@pytest.mark.parametrize("kind", ["bytes", "struct", "tensor", "names", "folder"])
def test_every_layout_reads_the_same(tmp_path: Path, kind: str) -> None:
    order = np.arange(200)
    if kind == "bytes":
        parquet(tmp_path)
    elif kind == "struct":
        parquet(tmp_path, image=[{"bytes": png(image), "path": None} for image in IMAGES])
    elif kind == "tensor":
        parquet(tmp_path, image=pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES))
    elif kind == "names":
        parquet(tmp_path, label=[NAMES[label] for label in LABELS])
    else:
        order = np.argsort(LABELS, kind="stable")
        for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            (tmp_path / NAMES[label]).mkdir(exist_ok=True)
            (tmp_path / NAMES[label] / f"{number:03d}.png").write_bytes(png(image))
    assert count_images(source(tmp_path)) == 200
    for most in (1000, 200, 7):
        chosen = order[evenly_spaced(200, most)]
        read = read_public(source(tmp_path), NAMES, SHAPE, most)
        assert np.array_equal(read.images, IMAGES[chosen])
        assert np.array_equal(read.labels, LABELS[chosen])


def test_a_folder_named_like_a_parquet_file_holds_some(tmp_path: Path) -> None:
    """As Spark writes a data set."""
    (tmp_path / "set.parquet").mkdir()
    (parquet(tmp_path) / "a.parquet").rename(tmp_path / "set.parquet" / "part-00000.parquet")
    (tmp_path / "set.parquet" / "_SUCCESS").write_bytes(b"")
    (tmp_path / "empty.parquet").mkdir()
    read = read_public(source(tmp_path), NAMES, SHAPE, 1000)
    assert np.array_equal(read.images, IMAGES[[*range(130, 200), *range(130)]])  # by path


def test_where_chooses_rows_and_images_are_brought_to_the_shape(tmp_path: Path) -> None:
    splits = np.where(np.arange(200) % 3 == 0, "train", "test")
    parquet(tmp_path, split=splits, fold=np.arange(200) % 2)
    kept = source(tmp_path, where={"split": "train", "fold": 0})
    rows = np.flatnonzero((splits == "train") & (np.arange(200) % 2 == 0))
    read = read_public(kept, NAMES, SHAPE, 1000)
    assert np.array_equal(read.images, IMAGES[rows])
    small = ImageShape(height=3, width=3, channels=1)
    grey = read_public(source(tmp_path, label_column=None), NAMES, small, 10)
    assert grey.images.shape == (10, 3, 3, 1)
    assert grey.labels.tolist() == [-1] * 10
    expected = Image.fromarray(IMAGES[0]).convert("L").resize((3, 3), Image.Resampling.BICUBIC)
    assert np.array_equal(grey.images[0, :, :, 0], np.asarray(expected))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "/nowhere"}, r"metrics.public.data: /nowhere does not exist"),
        ({"image_column": "img"}, "metrics.public.image_column: 'img' is not in .*a.parquet"),
        ({"label_column": "class"}, "metrics.public.label_column: 'class'"),
        ({"where": {"split": "test"}}, "metrics.public.where.split"),
        ({"where": {"label": "one"}}, "metrics.public: .*a.parquet can't be read"),
        ({"where": {"label": 7}}, "holds no image that passes `where`"),
        ({"image_column": "label"}, "metrics.public.image_column: 'label' holds int64"),
        ({"labels": ("cat", "0")}, None),
        ({"labels": ("0", "2")}, "the label 1 is not one of private.labels"),
    ],
)
def test_wrong_settings_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    names = changes.get("labels", NAMES)
    settings = {name: value for name, value in changes.items() if name != "labels"}
    given = source(**{"data": parquet(tmp_path), **settings})
    if message is None:
        assert read_public(given, names, SHAPE, 4).labels.max() <= 1
        return
    with pytest.raises(InputError, match=message):
        read_public(given, names, SHAPE, 200)


def test_a_corrupt_image_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds neither \.parquet files nor images"):
        count_images(source(tmp_path))
    encoded = [png(image) for image in IMAGES]
    encoded[140] = b"no image"
    parquet(tmp_path, image=encoded)
    with pytest.raises(InputError, match=r"b\.parquet, row 10: image can't be decoded"):
        read_public(source(tmp_path), NAMES, SHAPE, 200)
    (tmp_path / "a.parquet").write_bytes(b"torn")
    with pytest.raises(InputError, match="is not readable parquet"):
        count_images(source(tmp_path))


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "cat.png").mkdir()
    with pytest.raises(InputError, match=r"metrics\.public\.data: .* holds neither"):
        count_images(source(tmp_path))
    (tmp_path / "cat.png" / "1.tif").write_bytes(png(IMAGES[1]))
    (tmp_path / "cat.png" / "._1.tif").write_bytes(b"hidden")
    read = read_public(source(tmp_path), ("cat.png",), SHAPE, 9)
    assert np.array_equal(read.images, IMAGES[1:2])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").symlink_to(tmp_path / "gone")
    unlabelled = source(tmp_path, label_column=None)
    with pytest.raises(InputError, match=r"^metrics\.public\.data: .*0\.png: image is missing"):
        read_public(unlabelled, NAMES, SHAPE, 9)
    with pytest.raises(InputError, match=r"^metrics\.public\.data: .*0\.png can't be used"):
        CachedImages(unlabelled, 4, 3, str(tmp_path / "cache"))


def test_every_image_is_read_whatever_the_files_hold(tmp_path: Path) -> None:
    """An image beside the class folders has no class; a file without the columns is named."""
    Image.fromarray(IMAGES[0]).save(tmp_path / "0.png")
    (tmp_path / "cat").mkdir()
    Image.fromarray(IMAGES[1]).save(tmp_path / "cat" / "1.png")
    unlabelled = source(tmp_path, label_column=None)
    assert np.array_equal(read_public(unlabelled, NAMES, SHAPE, 9).images, IMAGES[:2])
    with pytest.raises(InputError, match=r"an image has no label of private\.labels"):
        check_public(source(tmp_path), NAMES)
    check_public(unlabelled, NAMES)
    (tmp_path / "0.png").unlink()
    check_public(source(tmp_path), NAMES)
    with pytest.raises(InputError, match=r"the label 'cat' is not one of private\.labels"):
        check_public(source(tmp_path), ("dog",))
    parquet(tmp_path)
    pq.write_table(pa.table({"image": [png(IMAGES[0])]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"label_column: 'label' is not in .*c\.parquet"):
        count_images(source(tmp_path))

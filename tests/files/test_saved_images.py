"""Images that a program holds go through the same door as files, with the same pixels."""

from __future__ import annotations

import doctest
import io
import os
import stat
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pe_ray import InputError, save_images
from pe_ray.files import saved_images
from pe_ray.files.image_batches import read_batches
from pe_ray.files.image_shards import find_shards
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.images import decode_image
from pe_ray.values import Framing, ImageShape

FRAMING = Framing(shape=ImageShape(height=6, width=4, channels=3))
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
NAMES = ["cat", "cat", "dog", "cat", "dog"]


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def read(path: Any, **changes: Any) -> tuple[np.ndarray, list[str], list[Any]]:
    given = {"block": "private", "private": True, "data": str(path), "labels": ("dog", "cat")}
    table = ImageTable(**(given | changes))
    batches = [
        batch for part in find_shards(table).shards for batch in read_batches(table, part, FRAMING)
    ]
    images = np.concatenate([batch.images for batch in batches])
    names = (
        [str(table.labels[i]) for batch in batches for i in batch.labels] if table.labels else []
    )
    return images, names, [user for batch in batches for user in batch.users]


@pytest.mark.parametrize("kind", ["array", "list", "PIL", "bytes", "floats", "table", "data set"])
def test_what_is_saved_is_read(tmp_path: Path, kind: str) -> None:
    pillows = [Image.fromarray(picture) for picture in PICTURES]
    encoded = []
    for image in pillows:
        sink = io.BytesIO()
        image.save(sink, format="BMP")
        encoded.append(sink.getvalue())
    names: list[str] | None = NAMES
    images: Any = {
        "array": PICTURES,
        "list": list(PICTURES),
        "PIL": pillows,
        "bytes": encoded,
        "floats": PICTURES / 255,
        "table": pa.table({"image": encoded}),
    }.get(kind)
    if images is None:
        numbers = [["cat", "dog"].index(name) for name in NAMES]
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        )
        columns = {"image": pillows, "label": numbers}
        images, names = datasets.Dataset.from_dict(columns, features=features), None
    path = save_images(images, tmp_path / "new" / "pets.parquet", names, users=[7, 7, 8, 9, 9])
    assert path == tmp_path / "new" / "pets.parquet"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    found, labels, users = read(path, user_column="user")
    assert np.array_equal(found, PICTURES)
    assert labels == NAMES
    assert users == [7, 7, 8, 9, 9]
    assert [file.name for file in path.parent.iterdir()] == ["pets.parquet"]


def test_of_a_data_set_the_chosen_rows_and_the_files_that_it_names(tmp_path: Path) -> None:
    files = []
    for number, picture in enumerate(PICTURES):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(picture).save(files[-1])
    features = datasets.Features({"image": datasets.Image(), "who": datasets.Value("string")})
    named = datasets.Dataset.from_dict({"image": files, "who": list("abcde")}, features=features)
    path = save_images(named.select([3, 0]), tmp_path / "chosen.parquet", labels=["dog", "cat"])
    for file in files:
        Path(file).unlink()
    found, labels, users = read(path, user_column="who")
    assert np.array_equal(found, PICTURES[[3, 0]])
    assert (labels, users) == (["dog", "cat"], ["d", "a"])


def test_any_image_of_pillow_is_read_as_its_file_would_be(tmp_path: Path) -> None:
    """Turned, deep, inverted, transparent, of a palette, or of inks."""
    rgb = Image.fromarray(PICTURES[0])
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.arange(24, dtype=np.uint16).reshape(6, 4) * 2000)
    clear = Image.fromarray(np.dstack([PICTURES[1], PICTURES[2][..., 0]]))
    written = [
        (rgb, "PNG", {"exif": turned}),
        (deep, "TIFF", {}),
        (deep, "TIFF", {"tiffinfo": {262: 0}}),
        (clear, "PNG", {}),
        (rgb.quantize(8), "GIF", {"transparency": 3}),
        (rgb.convert("CMYK"), "TIFF", {}),
        (rgb.convert("LA"), "PNG", {}),
        (rgb.convert("1"), "TIFF", {}),
    ]
    files, opened = [], []
    for image, form, options in written:
        sink = io.BytesIO()
        image.save(sink, format=form, **options)
        files.append(sink.getvalue())
        opened.append(Image.open(io.BytesIO(sink.getvalue())))
    path = save_images(opened, tmp_path / "x.parquet")
    import pyarrow.parquet as pq

    for content, stored in zip(files, pq.read_table(path)["image"].to_pylist(), strict=True):
        assert np.array_equal(decode_image(stored, 3, "red"), decode_image(content, 3, "red"))


@pytest.mark.parametrize(
    ("images", "labels", "field"),
    [
        ("pets", None, "images"),
        (7, None, "images"),
        ([np.zeros((4, 4), np.int64)], None, r"images\[0\]"),
        ([np.zeros((4, 4, 2), np.uint8)], None, r"images\[0\]"),
        ([np.zeros((4, 4), np.uint8), np.full((4, 4), 2.0)], None, r"images\[1\]"),
        ([Image.new("F", (4, 4))], None, r"images\[0\]"),
        ([None], None, r"images\[0\]"),
        ([np.zeros((4, 4), np.uint8)], ["cat", "dog"], "labels"),
        ([np.zeros((4, 4), np.uint8)], [0.5], "labels"),
        ([np.zeros((4, 4), np.uint8)], [["cat"]], "labels"),
        (pa.table({"image": [b""], "label": ["cat"]}), ["cat"], "labels"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_dict({})}), None, "images"),
    ],
)
def test_what_cant_be_saved_leaves_nothing(
    tmp_path: Path, images: Any, labels: Any, field: str
) -> None:
    with pytest.raises(InputError, match=rf"^{field}: "):
        save_images(images, tmp_path / "x.parquet", labels)
    assert not list(tmp_path.iterdir())


def test_places_that_cant_be_written_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^path: "):
        save_images(PICTURES, tmp_path / "file" / "x.parquet")


def test_the_docstring_runs() -> None:
    assert doctest.testmod(saved_images).attempted
    assert not doctest.testmod(saved_images).failed

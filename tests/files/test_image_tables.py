"""Tables of images: every layout reads alike, and an error says what its policy allows."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pe_ray import InputError
from pe_ray.components.generators.cached_images import CachedImages
from pe_ray.errors import RecordError
from pe_ray.files.image_batches import count_images, evenly_spaced, read_images
from pe_ray.files.image_shards import list_shards
from pe_ray.files.image_tables import ImageTable
from pe_ray.values import Framing, ImageShape

SHAPE = ImageShape(height=5, width=4, channels=3)
FRAMING = Framing(shape=SHAPE)
IMAGES = np.random.default_rng(0).integers(0, 256, (200, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(200) % 2
NAMES = ("cat", "dog")


def png(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="PNG")
    return sink.getvalue()


def table(data: Path | str, **changes: Any) -> ImageTable:
    given = {"block": "metrics.public", "private": False, "data": str(data), "labels": NAMES}
    given["label_values"] = "position"
    return ImageTable(**(given | changes))


def count(given: ImageTable) -> int:
    return sum(count_images(given, list_shards(given)))


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
    assert count(table(tmp_path)) == 200
    for most in (1000, 200, 7):
        chosen = order[evenly_spaced(200, most)]
        images, labels = read_images(table(tmp_path), FRAMING, most)
        assert np.array_equal(images, IMAGES[chosen])
        assert np.array_equal(labels, LABELS[chosen])
    images, labels = read_images(table(tmp_path, private=True, block="private"), FRAMING)
    assert np.array_equal(images, IMAGES[order])
    assert np.array_equal(labels, LABELS[order])


def test_a_folder_named_like_a_parquet_file_holds_some(tmp_path: Path) -> None:
    """As Spark writes a data set."""
    (tmp_path / "set.parquet").mkdir()
    (parquet(tmp_path) / "a.parquet").rename(tmp_path / "set.parquet" / "part-00000.parquet")
    (tmp_path / "set.parquet" / "_SUCCESS").write_bytes(b"")
    (tmp_path / "empty.parquet").mkdir()
    images, _ = read_images(table(tmp_path), FRAMING, 1000)
    assert np.array_equal(images, IMAGES[[*range(130, 200), *range(130)]])  # by path


def test_where_chooses_rows_and_images_get_the_shape(tmp_path: Path) -> None:
    splits = np.where(np.arange(200) % 3 == 0, "train", "test")
    parquet(tmp_path, split=splits, fold=np.arange(200) % 2)
    rows = np.flatnonzero((splits == "train") & (np.arange(200) % 2 == 0))
    kept = table(tmp_path, where={"split": "train", "fold": 0})
    for most in (1000, 11):
        images, _ = read_images(kept, FRAMING, most)
        assert np.array_equal(images, IMAGES[rows[evenly_spaced(len(rows), most)]])
    small = ImageShape(height=3, width=3, channels=1)
    images, labels = read_images(
        table(tmp_path, labels=None, label_column=None), Framing(shape=small), 10
    )
    assert images.shape == (10, 3, 3, 1)
    assert labels.tolist() == [-1] * 10
    grey = Image.fromarray(IMAGES[0]).convert("L")
    box = (0, 0.5, 4, 4.5)
    expected = grey.resize((3, 3), Image.Resampling.LANCZOS, box=box)
    assert np.array_equal(images[0, :, :, 0], np.asarray(expected))


def test_the_only_label_is_that_of_a_table_without_labels(tmp_path: Path) -> None:
    only = table(parquet(tmp_path), labels=("all",), label_column=None)
    assert read_images(only, FRAMING)[1].tolist() == [0] * 200


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data": "/nowhere"}, "data"),
        ({"data": "ftp://host/data"}, "data"),
        ({"image_column": "img"}, "image_column"),
        ({"label_column": "class"}, "label_column"),
        ({"where": {"split": "test"}}, "where.split"),
        ({"where": {"label": "one"}}, "where.label"),
        ({"where": {"label": 7}}, "where"),
        ({"image_column": "label"}, "image_column"),
        ({"labels": ("0", "2"), "label_values": "name"}, "data"),
        ({"data": "sklearn:digits", "where": {"split": "test"}}, "where"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=rf"^metrics\.public\.{field}: "):
        read_images(table(**{"data": parquet(tmp_path), **changes}), FRAMING, 200)


def test_a_field_of_another_block_is_named(tmp_path: Path) -> None:
    elsewhere = table("/nowhere", fields={"data": "metrics.audit_data"})
    with pytest.raises(InputError, match=r"^metrics\.audit_data: "):
        list_shards(elsewhere)


def test_integers_are_names_or_declared_positions(tmp_path: Path) -> None:
    """One name that is no number doesn't change what the others mean."""
    parquet(tmp_path)
    by_name = table(tmp_path, labels=("1", "0"), label_values="name")
    assert read_images(by_name, FRAMING)[1].tolist() == (1 - LABELS).tolist()
    by_position = table(tmp_path, labels=("1", "0"))
    assert read_images(by_position, FRAMING)[1].tolist() == LABELS.tolist()
    with pytest.raises(InputError, match=r"^metrics\.public\.label_column: .*label_values"):
        list_shards(table(tmp_path, labels=("cat", "0"), label_values="name"))


@pytest.mark.parametrize("label_values", ["name", "position"])
def test_class_names_in_the_file_decide(tmp_path: Path, label_values: str) -> None:
    """As our own sets and those of Hugging Face carry them."""
    features = {"label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    stored = pa.table({"image": [png(image) for image in IMAGES], "label": LABELS})
    pq.write_table(stored.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    given = table(tmp_path, label_values=label_values)
    assert read_images(given, FRAMING)[1].tolist() == (1 - LABELS).tolist()
    with pytest.raises(InputError, match=r"label 'dog' is not one of metrics\.public\.labels"):
        read_images(table(tmp_path, labels=("cat", "cow")), FRAMING)
    unlabelled = CachedImages(table(tmp_path, labels=None), FRAMING, str(tmp_path / "cache"))
    assert unlabelled.classes == ["cat", "dog"]
    assert unlabelled.class_of.tolist() == (1 - LABELS).tolist()


def test_a_corrupt_image_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^metrics\.public\.data: .* holds neither"):
        count(table(tmp_path))
    encoded = [png(image) for image in IMAGES]
    encoded[140] = b"no image"
    parquet(tmp_path, image=encoded)
    with pytest.raises(InputError, match=r"^metrics\.public\.data: .*b\.parquet, row 10: image"):
        read_images(table(tmp_path), FRAMING, 200)
    (tmp_path / "a.parquet").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"^metrics\.public\.data: .*a\.parquet"):
        count(table(tmp_path))


def test_only_public_tables_quote_what_is_wrong(tmp_path: Path) -> None:
    """A label, a class folder and an image's file."""
    names = ["cat"] * 150 + ["CANARY"] * 50
    (tmp_path / "file").mkdir()
    (tmp_path / "folder" / "cat").mkdir(parents=True)
    (tmp_path / "folder" / "cat" / "CANARY.png").write_bytes(b"no image")
    (tmp_path / "unknown" / "CANARY").mkdir(parents=True)
    (tmp_path / "unknown" / "CANARY" / "1.png").write_bytes(png(IMAGES[0]))
    for data in (
        parquet(tmp_path / "file", label=names),
        tmp_path / "folder",
        tmp_path / "unknown",
    ):
        with pytest.raises(InputError, match="CANARY"):
            read_images(table(data), FRAMING)
        with pytest.raises(InputError) as caught:
            read_images(table(data, private=True), FRAMING)
        assert "CANARY" not in f"{caught.value} {caught.value.__cause__!r}"
        assert isinstance(caught.value, RecordError) == (data.name != "unknown")


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "cat.png").mkdir()
    with pytest.raises(InputError, match=r"^metrics\.public\.data: .* holds neither"):
        count(table(tmp_path))
    (tmp_path / "cat.png" / "1.tif").write_bytes(png(IMAGES[1]))
    (tmp_path / "cat.png" / "._1.tif").write_bytes(b"hidden")
    images, _ = read_images(table(tmp_path, labels=("cat.png",)), FRAMING, 9)
    assert np.array_equal(images, IMAGES[1:2])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").symlink_to(tmp_path / "gone")
    unlabelled = table(tmp_path, labels=None, label_column=None)
    with pytest.raises(InputError, match=r"^metrics\.public\.data: .*0\.png: image is missing"):
        read_images(unlabelled, FRAMING, 9)
    with pytest.raises(InputError, match=r"^metrics\.public\.data: .*0\.png "):
        CachedImages(unlabelled, FRAMING, str(tmp_path / "cache"))


def test_every_image_is_read_whatever_the_files_hold(tmp_path: Path) -> None:
    """An image outside the class folders has no class; a file without the columns is named."""
    Image.fromarray(IMAGES[0]).save(tmp_path / "0.png")
    (tmp_path / "cat").mkdir()
    Image.fromarray(IMAGES[1]).save(tmp_path / "cat" / "1.png")
    unlabelled = table(tmp_path, labels=None, label_column=None)
    assert np.array_equal(read_images(unlabelled, FRAMING, 9)[0], IMAGES[:2])
    with pytest.raises(InputError, match=r"^metrics\.public\.data: .* outside of class folders"):
        list_shards(table(tmp_path))
    (tmp_path / "0.png").unlink()
    list_shards(table(tmp_path))
    with pytest.raises(InputError, match=r"^metrics\.public\.labels: .*'cat'"):
        list_shards(table(tmp_path, labels=("dog",)))
    parquet(tmp_path)
    pq.write_table(pa.table({"image": [png(IMAGES[0])]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"^metrics\.public\.label_column: .*c\.parquet"):
        count(table(tmp_path))


def test_digits_are_what_scikit_learn_reads() -> None:
    from sklearn.datasets import load_digits

    digits = table("sklearn:digits", labels=tuple("0123456789"), label_values="name")
    shape = ImageShape(height=8, width=8, channels=1)
    images, labels = read_images(digits, Framing(shape=shape), 10_000)
    images_there, labels_there = load_digits().images, load_digits().target
    assert np.array_equal(images[..., 0], np.round(images_there * (255 / 16)))
    assert np.array_equal(labels, labels_there)

"""The written sets, read as users read them: pandas, HF datasets, torch, image folders."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pe_ray.errors import InputError
from pe_ray.files.folder_names import folder_name
from pe_ray.files.image_batches import read_batches
from pe_ray.files.image_shards import find_shards
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.parts import commit, read_manifest, write_part
from pe_ray.synthetic.export import encode_png, load_format, try_export
from pe_ray.synthetic.export_formats import LabelledImages
from pe_ray.values import Framing, ImageShape

NAMES = ("no", "maybe/yes")
LABELS = np.array([1, 0, 0, 1, 1], dtype=np.int32)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)


ODD = (
    "train",
    "é",
    "a b",
    "con",
    "test",
    "日本",
    "[x]",
    "A+B's (c) & #1",
    "validation",
    "no",
    "010",
)


@pytest.fixture(scope="module", params=[1, 3])
def images(request: pytest.FixtureRequest) -> np.ndarray:
    return IMAGES[..., : request.param]


def write_part_of(
    form: str, folder: Path, first: int, pngs: list[bytes], labels: np.ndarray, names: Sequence[str]
) -> bytes:
    images = LabelledImages(first=first, pngs=pngs, labels=labels, names=names)
    return load_format(form).write(folder, images)


def written(
    folder: Path,
    form: str,
    images: np.ndarray,
    names: Sequence[str] = NAMES,
    labels: np.ndarray = LABELS,
) -> Path:
    """A set of two parts."""
    parts = []
    for start, stop in ((0, 3), (3, 5)):
        pngs = [encode_png(image) for image in images[start:stop]]
        content = write_part_of(form, folder, start, pngs, labels[start:stop], names)
        parts.append(write_part(folder, start, stop, load_format(form).suffix, content))
    commit(folder, parts, {})
    return folder


def pixels(image: Image.Image, like: np.ndarray) -> np.ndarray:
    return np.asarray(image).reshape(like.shape)


def test_parquet_reads_with_hf_datasets(tmp_path: Path, images: np.ndarray) -> None:
    import datasets

    folder = written(tmp_path / "set", "parquet", images)
    loaded = datasets.load_dataset("parquet", data_dir=str(folder), cache_dir=str(tmp_path / "hf"))
    rows = loaded["train"]
    assert rows.features["label"].names == list(NAMES)
    assert rows["label"] == LABELS.tolist()
    for row, image in zip(rows, images, strict=True):
        assert np.array_equal(pixels(row["image"], image), image)


def test_parquet_reads_with_pandas(tmp_path: Path, images: np.ndarray) -> None:
    import pandas as pd

    frame = pd.read_parquet(written(tmp_path / "set", "parquet", images))
    assert frame["label"].tolist() == LABELS.tolist()
    for cell, image in zip(frame["image"], images, strict=True):
        assert np.array_equal(pixels(Image.open(io.BytesIO(cell["bytes"])), image), image)


def test_parquet_reads_with_a_torch_data_loader(tmp_path: Path, images: np.ndarray) -> None:
    import datasets
    from torch.utils.data import DataLoader

    folder = written(tmp_path / "set", "parquet", images)
    loaded = datasets.load_dataset("parquet", data_dir=str(folder), cache_dir=str(tmp_path / "hf"))
    rows = loaded["train"].with_format("torch")
    batches = list(DataLoader(rows, batch_size=2))
    assert [len(batch["label"]) for batch in batches] == [2, 2, 1]
    first = batches[0]["image"][0].numpy()
    assert np.array_equal(first.transpose(1, 2, 0), images[0])


def test_webdataset_reads_with_hf_datasets(tmp_path: Path, images: np.ndarray) -> None:
    import datasets

    folder = written(tmp_path / "set", "webdataset", images)
    files = sorted(str(file) for file in folder.glob("*.tar"))
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": files}, cache_dir=str(tmp_path / "hf")
    )
    for row, image, label in zip(loaded["train"], images, LABELS, strict=True):
        assert np.array_equal(pixels(row["png"], image), image)
        assert row["cls"] == label


@pytest.mark.parametrize("form", ["parquet", "webdataset", "folder"])
@pytest.mark.parametrize(
    "names",
    [
        ("train", "é", "a b", "3"),
        ("2", "0", "1", "3"),
        ("_x", ".x", "a/b", "label=x"),
        ("%41", "A"),
        ODD[:5],
        ODD[5:10],
    ],
)
def test_an_export_is_read_back_by_name(
    tmp_path: Path, form: str, names: Sequence[str], images: np.ndarray
) -> None:
    """Names decide, so the configuration may list them in another order."""
    labels = np.arange(5, dtype=np.int32)[::-1] % len(names)
    for _ in range(2):  # a killed start leaves files, and the next one writes them again
        written(tmp_path, form, images, names, labels)
        (tmp_path / f".classes.json.{uuid.uuid4().hex}").write_bytes(b"[")
    _, height, width, channels = images.shape
    framing = Framing(shape=ImageShape(height=height, width=width, channels=channels))
    for declared in (names, tuple(sorted(names))):
        table = ImageTable(block="private", private=True, data=str(tmp_path), labels=declared)
        found = {
            image.tobytes(): declared[label]
            for part in find_shards(table).shards
            for batch in read_batches(table, part, framing)
            for image, label in zip(batch.images, batch.labels, strict=True)
        }
        assert found == {
            image.tobytes(): names[label] for image, label in zip(images, labels, strict=True)
        }


def test_folders_read_with_torchvision(tmp_path: Path, images: np.ndarray) -> None:
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(written(tmp_path / "set", "folder", images)))
    assert found.classes == sorted(folder_name(name) for name in NAMES)
    assert len(found) == 5
    file = tmp_path / "set" / folder_name(NAMES[1]) / "0000000003.png"
    assert np.array_equal(pixels(Image.open(file), images[3]), images[3])


def test_a_set_by_label_keeps_what_is_named_like_a_part(tmp_path: Path) -> None:
    """A label's folder is no part, whatever its name; what a killed writer left is removed."""
    names = ("part-time", "part-0000000000-0000000003.parquet")
    left = [
        "part-0000000000-0000000002.done",
        f".part-0000000003-0000000005.done.{uuid.uuid4().hex}",
    ]
    for name in (*left, "part-list.txt", ".notes.part-1"):
        (tmp_path / name).write_bytes(b"")
    written(tmp_path, "folder", IMAGES, names)
    assert read_manifest(tmp_path) is not None
    for label, name in enumerate(names):
        assert len(list((tmp_path / name).iterdir())) == list(LABELS).count(label)
    kept = {file.name for file in tmp_path.iterdir()}
    assert not kept & set(left)
    assert kept >= {"part-list.txt", ".notes.part-1"}


def written_for_each(folder: Path, form: str) -> dict[str, np.ndarray]:
    """Write one image of each odd label; return them by label."""
    images = np.random.default_rng(1).integers(0, 256, (len(ODD), 8, 9, 3), dtype=np.uint8)
    pngs, labels = [encode_png(image) for image in images], np.arange(len(ODD), dtype=np.int32)
    content = write_part_of(form, folder, 0, pngs, labels, ODD)
    part = write_part(folder, 0, len(ODD), load_format(form).suffix, content)
    commit(folder, [part], {})
    return dict(zip(ODD, images, strict=True))


@pytest.mark.parametrize("form", ["parquet", "webdataset", "folder"])
def test_odd_labels_read_with_hf_datasets(tmp_path: Path, form: str) -> None:
    """As docs/expand.md says. A folder named `train` or `test` would be taken for a split."""
    import datasets

    expected = written_for_each(tmp_path / "set", form)
    data: dict[str, Any] = {
        "parquet": {"path": "parquet"},
        "webdataset": {"path": "webdataset", "data_files": {"train": "*.tar"}},
        "folder": {"path": "imagefolder", "data_files": {"train": "*/*.png"}},
    }[form]
    loaded = datasets.load_dataset(
        **data, data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "hf")
    )
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    column, label = ("png", "cls") if form == "webdataset" else ("image", "label")
    names = list(ODD) if form == "webdataset" else rows.features["label"].names
    assert sorted(names) == sorted(ODD)
    assert len(rows) == len(ODD)
    for row in rows:
        assert np.array_equal(np.asarray(row[column]), expected[names[row[label]]])


@given(st.text(min_size=1))
def test_a_labels_folder_is_one_visible_name_of_its_own(name: str) -> None:
    folder = folder_name(name)
    assert unquote(folder) == name
    assert not set(folder) & {"/", "\\", "\0", "\n"}
    assert folder[0] != "."


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """A disk (ext4), empty at first, whose power is cut by each further call."""
    image, folder = tmp_path / "disk", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)

    def run(*command: str) -> None:
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"no disk to cut the power of: {command[0]} is missing")
        if done.returncode:
            pytest.skip(f"no disk to cut the power of: {command[0]}: {done.stderr.strip()}")

    def mounted() -> Path:
        if folder.is_mount():
            handle = os.open(folder, os.O_RDONLY)
            try:  # EXT4_IOC_SHUTDOWN, nothing in memory kept
                fcntl.ioctl(handle, 0x8004587D, struct.pack("I", 2))
            finally:
                os.close(handle)
            run("umount", str(folder))
        run("mount", "-o", "loop", str(image), str(folder))
        return folder

    run("mkfs.ext4", "-q", str(image))
    yield mounted
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def test_no_power_cut_leaves_a_marker_without_its_images(disk: Callable[[], Path]) -> None:
    folder, pngs = disk() / "set", [encode_png(image) for image in IMAGES]
    content = write_part_of("folder", folder, 0, pngs, LABELS, NAMES)
    part = write_part(folder, 0, 5, "done", content)
    disk()
    assert (folder / part.file).read_bytes() == content
    for row, (image, label) in enumerate(zip(pngs, LABELS, strict=True)):
        file = folder / folder_name(NAMES[label]) / f"{row:010d}.png"
        assert file.read_bytes() == image


def test_a_label_too_long_for_a_folders_name_is_named(tmp_path: Path) -> None:
    """By its bytes: 3 for each of these characters, of at most 255."""
    for length, refused in ((85, False), (86, True)):
        images = LabelledImages(
            first=0,
            pngs=[encode_png(IMAGES[0])],
            labels=np.zeros(1, np.int32),
            names=["猫" * length],
        )
        load_format("webdataset").write(tmp_path, images)
        with pytest.raises(InputError, match=r"^--format: ") if refused else nullcontext():
            load_format("folder").write(tmp_path, images)


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "C:\\x", "zwei drei"])
def test_a_labels_folder_is_one_plain_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / folder_name(name) if folder_name(name) else None
    if name:
        assert folder is not None
        assert folder.parent == tmp_path
        assert folder.resolve().parent == tmp_path.resolve()


def test_a_shape_that_png_cant_hold_is_refused() -> None:
    for channels in (1, 3):
        try_export(cast(Any, SimpleNamespace(image_shape=shape_with(channels))))
    with pytest.raises(InputError, match=r"^generator: makes images of 8x8x5"):
        try_export(cast(Any, SimpleNamespace(image_shape=shape_with(5))))


def shape_with(channels: int) -> ImageShape:
    return ImageShape(height=8, width=8, channels=channels)

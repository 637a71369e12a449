"""Every source reads alike; a bad record is named by shard and row, never by content."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import stat
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from weighed import Weighed, save_weights
from whole_slices import list_slices, read_slice

from pe_ray import Config
from pe_ray.components.embedders.pixels import Pixels
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.kinds import Plugin
from pe_ray.errors import InputError, RecordError
from pe_ray.evolution import evolve
from pe_ray.files.image_tables import ImageTable
from pe_ray.private.record_embeddings import PrivateRecords, embed_slice, open_records
from pe_ray.private.records import read_records
from pe_ray.values import Framing, ImageShape

IMAGES = np.random.default_rng(0).integers(0, 256, size=(6, 5, 4, 3), dtype=np.uint8)
LABELS = [0, 1, 1, 0, 1, 0]
CANARY = "CANARY-5f3a"
PIXELS = Plugin(plugin_type="embedder", kind="pixels", options=Pixels.Options(size=4))


def png(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="PNG")
    return sink.getvalue()


def tensors(images: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(images)


SHAPE = ImageShape(height=5, width=4, channels=3)
GREY = replace(SHAPE, channels=1)


def config(data: Path | str, **changes: Any) -> PrivateConfig:
    given = {"labels": ("cat", "dog"), "label_values": "position", **changes}
    return PrivateConfig(data=str(data), **given)


def parquet(folder: Path, **columns: Any) -> Path:
    file = folder / "records.parquet"
    pq.write_table(pa.table({"label": LABELS, **columns}), file)
    return file


def read_all(settings: PrivateConfig, shape: ImageShape = SHAPE) -> tuple[np.ndarray, list[int]]:
    read = [read_slice(part, settings, shape) for part in list_slices(settings)]
    images = np.stack([image for records in read for image in records.images])
    return images, [int(label) for records in read for label in records.labels]


@pytest.mark.parametrize("kind", ["bytes", "struct", "tensor", "float", "folder"])
def test_every_source_reads_the_same(tmp_path: Path, kind: str) -> None:
    encoded = [png(image) for image in IMAGES]
    data = tmp_path
    expected_images, expected_labels = IMAGES, LABELS
    if kind == "bytes":
        data = parquet(tmp_path, image=encoded)
    elif kind == "struct":
        data = parquet(tmp_path, image=[{"bytes": image, "path": None} for image in encoded])
    elif kind == "tensor":
        data = parquet(tmp_path, image=tensors(IMAGES))
    elif kind == "float":
        data = parquet(tmp_path, image=tensors((IMAGES / 255).astype(np.float32)))
    else:
        for number, (content, label) in enumerate(zip(encoded, LABELS, strict=True)):
            folder = tmp_path / ("cat", "dog")[label]
            folder.mkdir(exist_ok=True)
            (folder / f"{number}.png").write_bytes(content)
        order = np.argsort(LABELS, kind="stable")
        expected_images, expected_labels = IMAGES[order], [LABELS[i] for i in order]
    images, labels = read_all(config(data))
    assert np.array_equal(images, expected_images)
    assert labels == expected_labels


def test_of_a_class_folder_all_images_are_read_and_nothing_else(tmp_path: Path) -> None:
    """By paths' order; hidden files, hidden folders and links to folders aren't read."""
    elsewhere = tmp_path / "elsewhere"
    data = tmp_path / "data"
    places = ["a b.png", "a/x.tif", "a/b/y.PGM", "z.png"]
    for image, place in zip(IMAGES, places, strict=False):
        file = data / "cat" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(image).convert("L")
        grey.save(file, format={"tif": "TIFF", "pgm": "PPM"}.get(place[-3:].lower(), "PNG"))
    for no_record in ("cat/._z.png", "cat/.thumbnails/z.png", ".checkpoints/z.png"):
        (data / no_record).parent.mkdir(exist_ok=True)
        (data / no_record).write_bytes(b"no image")
    (data / "cat" / "readme.txt").write_text("no image")
    elsewhere.mkdir()
    (elsewhere / "other.png").write_bytes(png(IMAGES[5]))
    (tmp_path / "single.png").write_bytes(png(IMAGES[4]))
    (data / "cat" / "link").symlink_to(elsewhere)
    (data / "cat" / "zz.png").symlink_to(tmp_path / "single.png")
    (data / "dog").symlink_to(elsewhere)
    order = [2, 1, 0, 3]  # a/b/y.PGM, a/x.tif, a b.png, z.png: folders' names come first
    images, labels = read_all(config(data), shape=GREY)
    assert labels == [0] * 5 + [1]
    for found, number in zip(images, [*order, 4, 5], strict=True):
        assert np.array_equal(
            found[..., 0], np.asarray(Image.fromarray(IMAGES[number]).convert("L"))
        )


def test_a_class_folder_without_an_image_that_is_read_is_named(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label / "more").mkdir(parents=True)
        (tmp_path / label / "more" / "1.png").write_bytes(png(IMAGES[0]))
    (tmp_path / "dog" / "more" / "1.png").rename(tmp_path / "dog" / "more" / "1.heic")
    with pytest.raises(InputError, match=r"^private\.data: dog/more/1\.heic"):
        list_slices(config(tmp_path))
    (tmp_path / "dog" / "more" / "1.heic").rename(tmp_path / "dog" / "more" / "1.txt")
    with pytest.raises(InputError, match=r"^private\.data: the folder of label 'dog' .*\.tiff"):
        list_slices(config(tmp_path))
    (tmp_path / "dog" / "more" / "1.txt").unlink()
    (tmp_path / "dog" / "more").rmdir()
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"")
    assert len(list_slices(config(tmp_path))) == 1  # of an empty class


def test_a_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes into it, or goes, while it is read moves no row to another slice."""
    (tmp_path / "cat").mkdir()
    for number in range(900):
        image = np.full((1, 1, 3), number % 251, dtype=np.uint8)
        (tmp_path / "cat" / f"{number:04d}.png").write_bytes(png(image))
    settings = config(tmp_path)
    parts = list_slices(settings)
    assert [part.start for part in parts] == [0, 256, 512, 768]
    assert sum(len(part.files) for part in parts) < 4 * 900
    assert "png" not in repr(parts)
    (tmp_path / "cat" / "!.png").write_bytes(png(IMAGES[0]))
    (tmp_path / "cat" / "0300.png").unlink()
    monkeypatch.setattr(os, "walk", None)
    for part in parts:
        if part.start == 256:
            with pytest.raises(RecordError, match="shard 0, row 300: image is missing"):
                read_slice(part, settings, GREY)
            continue
        read = read_slice(part, settings, GREY)
        assert read.rows.tolist() == list(range(part.start, part.stop))
        assert [int(image[0, 0, 0]) for image in read.images] == [row % 251 for row in read.rows]


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    """As file systems allow: neither UTF-8 nor on one line."""
    (tmp_path / "cat").mkdir()
    for image, name in zip(IMAGES, [b"\xff.png", b"a\nb.png", "ä.png".encode()], strict=False):
        (tmp_path / "cat" / os.fsdecode(name)).write_bytes(png(image))
    images, _ = read_all(config(tmp_path))
    assert np.array_equal(images, IMAGES[[1, 2, 0]])  # by code points, as before


def embed(settings: PrivateConfig, embedder: Plugin = PIXELS) -> np.ndarray:
    (part,) = list_slices(settings)
    return embed_slice(part, settings, Framing(shape=SHAPE), embedder).features


def weighed(checkpoint: Path | str) -> Plugin:
    options = Weighed.Options(checkpoint=str(checkpoint))
    return Plugin(plugin_type="embedder", kind="weighed:Weighed", options=options)


def test_two_projects_with_a_network_of_one_name_have_embeddings_of_their_own(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(parquet(tmp_path, image=[png(image) for image in IMAGES]))
    made = []
    for project, seed in (("one", 0), ("other", 1), ("copy", 0)):
        save_weights(tmp_path / project / "models" / "clip", seed)
        monkeypatch.chdir(tmp_path / project)
        made.append(embed(settings, weighed("models/clip")))
    one, other, copy = made
    assert not np.allclose(one, other)
    assert np.array_equal(one, copy)
    assert len(list(private_cache.iterdir())) == 2


def test_a_network_trained_again_in_place_embeds_again(tmp_path: Path) -> None:
    """Its file has the size, the inode and the time of the one before."""
    settings = config(parquet(tmp_path, image=[png(image) for image in IMAGES]))
    folder = save_weights(tmp_path / "clip", 0)
    file = folder / "network" / "weights.npy"
    before, state = embed(settings, weighed(folder)), file.stat()
    held = file.read_bytes()
    save_weights(folder, 1)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    now = file.stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (
        *(state.st_size, state.st_mtime_ns, state.st_ino),
    )
    assert not np.allclose(embed(settings, weighed(folder)), before)
    file.write_bytes(held)
    assert np.array_equal(embed(settings, weighed(folder)), before)


def test_other_records_at_the_same_path_are_embedded(tmp_path: Path) -> None:
    """Copied over with the size and time of the file before, as a sync does."""
    file = parquet(tmp_path, image=tensors(IMAGES))
    before, state = embed(config(file)), file.stat()
    other = tmp_path / "other"
    other.mkdir()
    parquet(other, image=tensors(255 - IMAGES)).rename(file)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.stat().st_size == state.st_size
    assert not np.allclose(embed(config(file)), before)


def test_a_folder_named_like_a_parquet_file_holds_some(tmp_path: Path) -> None:
    """As Spark writes a data set."""
    spark = tmp_path / "set.parquet"
    spark.mkdir()
    for number, rows in enumerate((slice(0, 4), slice(4, 6))):
        columns = {"image": [png(image) for image in IMAGES[rows]], "label": LABELS[rows]}
        pq.write_table(pa.table(columns), spark / f"part-{number:05d}-c000.snappy.parquet")
    (spark / "_SUCCESS").write_bytes(b"")
    for data in (tmp_path, spark):
        images, labels = read_all(config(data))
        assert np.array_equal(images, IMAGES)
        assert labels == LABELS


def test_grey_and_where(tmp_path: Path) -> None:
    splits = ["train", "test"] * 3
    data = parquet(tmp_path, image=[png(image) for image in IMAGES], split=splits)
    images, labels = read_all(config(data, where={"split": "test"}), shape=GREY)
    assert labels == LABELS[1::2]
    assert images.shape == (3, 5, 4, 1)
    assert images[0, 0, 0, 0] == Image.fromarray(IMAGES[1]).convert("L").getpixel((0, 0))


def opened(settings: PrivateConfig) -> PrivateRecords:
    return open_records(settings, framing=Framing(shape=SHAPE), embedder=PIXELS)


def collected(records: PrivateRecords) -> list[Any]:
    return [[ray.get(piece) for piece in pieces] for pieces in records.partitions]


@pytest.mark.parametrize("fault", ["corrupt", "torn", "label", "null", "range", "user"])
def test_a_bad_record_is_named_without_content(
    ray_session: None, tmp_path: Path, fault: str
) -> None:
    columns: dict[str, Any] = {"image": [png(image) for image in IMAGES]}
    columns["who"] = ["ann", "bob", "ann", CANARY, "bob", "bob"]
    if fault == "corrupt":
        columns["image"][3] = CANARY.encode() * 20
    elif fault == "torn":
        columns["image"][3] = columns["image"][3][:-40]
    elif fault == "null":
        columns["image"][3] = None
    elif fault == "label":
        columns["label"] = ["cat", "dog", "cat", CANARY, "dog", "cat"]
    elif fault == "user":
        columns["who"][3] = None
    else:
        bright = (IMAGES / 255).astype(np.float32)
        bright[3, 0, 0, 0] = np.nan
        columns["image"] = tensors(bright)
    with pytest.raises(RecordError, match="shard 0, row 3") as caught:
        opened(config(parquet(tmp_path, **columns), user_column="who"))
    assert CANARY not in str(caught.value)
    assert "CANARY" not in repr(caught.value.__cause__)


def test_a_user_is_in_one_partition(ray_session: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, size=(900, 3, 3, 3), dtype=np.uint8)
    users = [f"u{rng.integers(40)}" for _ in range(900)]
    table = pa.table({"label": [0] * 900, "image": tensors(images), "who": users})
    pq.write_table(table, tmp_path / "records.parquet")
    partitions = collected(opened(config(tmp_path, user_column="who")))
    assert len(partitions) > 1
    homes = [{user for piece in pieces for user in piece.users} for pieces in partitions]
    assert sum(len(home) for home in homes) == len(set().union(*homes)) == len(set(users))
    assert sum(len(piece.labels) for pieces in partitions for piece in pieces) == 900


def test_a_slice_without_rows_left_has_no_users(ray_session: None, tmp_path: Path) -> None:
    columns = {"image": [png(image) for image in IMAGES], "who": list("aabbcc")}
    file = parquet(tmp_path, split=["train"] * 6, **columns)
    pq.write_table(
        pq.read_table(file).set_column(1, "split", [["test"] * 6]), tmp_path / "second.parquet"
    )
    partitions = collected(opened(config(tmp_path, user_column="who", where={"split": "test"})))
    assert sum(len(piece.labels) for pieces in partitions for piece in pieces) == 6


@pytest.mark.parametrize("users", [None, "who"])
def test_a_filter_that_keeps_no_record_is_named(
    ray_session: None, tmp_path: Path, users: str | None
) -> None:
    columns = {"image": [png(image) for image in IMAGES], "who": list("aabbcc")}
    data = parquet(tmp_path, split=["train"] * 5 + ["test"], **columns)
    opened(config(data, where={"split": "test"}, user_column=users))
    with pytest.raises(InputError, match=r"^private\.where: keeps no record") as caught:
        opened(config(data, where={"split": "tset"}, user_column=users))
    assert not isinstance(caught.value, RecordError)


def test_cached_labels_follow_the_file_that_names_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for row, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            for ending, content in (("png", png(image)), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{row}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for names in (["cat", "dog"], ["dog", "cat"]):
        (tmp_path / "classes.json").write_text(json.dumps(names))
        private = config(tmp_path)
        (part,) = list_slices(private)
        made = embed_slice(part, private, Framing(shape=SHAPE), PIXELS)
        assert [names.index(("cat", "dog")[label]) for label in made.labels] == LABELS


def test_the_cache_is_private_and_dispensable(
    ray_session: None, tmp_path: Path, private_cache: Path
) -> None:
    data = parquet(tmp_path, image=[png(image) for image in IMAGES])
    first = collected(opened(config(data)))[0][0]
    (file,) = private_cache.iterdir()
    assert stat.S_IMODE(private_cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    cached = collected(opened(config(data)))[0][0]
    file.write_bytes(b"torn")
    again = collected(opened(config(data)))[0][0]
    assert np.array_equal(first.features, cached.features)
    assert np.array_equal(first.features, again.features)
    private_cache.chmod(0o755)
    with pytest.raises(InputError, match="chmod 700"):
        opened(config(data))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"image_column": "img"}, "private.image_column"),
        ({"where": {"split": "train"}}, "private.where.split"),
        ({"data": "/nowhere/at/all"}, "private.data"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    data = parquet(tmp_path, image=[png(image) for image in IMAGES])
    with pytest.raises(InputError, match=f"^{field}: "):
        list_slices(config(data).model_copy(update=changes))


def nested(images: np.ndarray, missing: set[int] = frozenset()) -> pa.Array:
    cells = [None if i in missing else image.tolist() for i, image in enumerate(images)]
    return pa.array(cells, pa.list_(pa.list_(pa.uint8(), images.shape[2]), images.shape[1]))


def test_a_file_that_yields_fewer_rows_than_it_says_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that aren't read would be missing in silence, from the votes and from nothing else."""
    images = np.zeros((300, 6, 5), dtype=np.uint8)
    table = pa.table({"image": nested(images), "label": [0] * 300})
    pq.write_table(table, tmp_path / "records.parquet")
    whole = pq.ParquetFile.iter_batches

    def short(self: pq.ParquetFile, *args: Any, **options: Any) -> Any:
        yield from list(whole(self, *args, **options))[:-1]

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", short)
    part = list_slices(config(tmp_path))[-1]
    with pytest.raises(RecordError, match=r"shard 0 .*ArrowInvalid"):
        list(read_records(part, config(tmp_path), 1))


@pytest.mark.parametrize("stored", [tensors, nested])
def test_slices_of_a_large_file_read_their_own_rows(tmp_path: Path, stored: Any) -> None:
    """Slices of 375 rows start off the reader's batches of 64."""
    images = np.random.default_rng(0).integers(0, 256, (3000, 5, 4), dtype=np.uint8)
    labels, kept = np.arange(3000) % 2, np.arange(3000) % 3 > 0
    table = pa.table({"image": stored(images), "label": labels, "kept": kept})
    pq.write_table(table, tmp_path / "records.parquet", row_group_size=2000)
    found, its_labels = read_all(config(tmp_path), shape=GREY)
    assert np.array_equal(found[..., 0], images)
    assert its_labels == labels.tolist()
    found, its_labels = read_all(config(tmp_path, where={"kept": True}), shape=GREY)
    assert np.array_equal(found[..., 0], images[kept])
    assert its_labels == labels[kept].tolist()


def test_a_missing_tensor_is_found_in_its_row(tmp_path: Path) -> None:
    """In the first batch of a slice, which starts within it."""
    images = np.zeros((3000, 6, 5), dtype=np.uint8)
    table = pa.table({"image": nested(images, {1876}), "label": [0] * 3000})
    pq.write_table(table, tmp_path / "records.parquet")
    with pytest.raises(RecordError, match="row 1876: image is missing"):
        read_all(config(tmp_path), shape=GREY)


@pytest.mark.parametrize("user", [7.0, dt.date(2020, 1, 1), b"7", True])
def test_users_are_integers_or_strings(tmp_path: Path, user: Any) -> None:
    """7 in one file and 7.0 in another would be two users."""
    data = parquet(tmp_path, image=[png(image) for image in IMAGES], who=[user] * 6)
    with pytest.raises(InputError, match=r"user_column: 'who' holds .*; use integers or strings"):
        list_slices(config(data, user_column="who"))


def test_real_digits_and_packs(packs: Path) -> None:
    names = tuple(str(digit) for digit in range(10))
    settings = config(packs / "mnist.parquet", labels=names, where={"split": "test"})
    part = list_slices(settings)[-1]
    records = read_slice(part, settings, GREY)
    assert records.images.std() > 20
    assert set(records.labels) <= set(range(10))
    small = ImageShape(height=8, width=8, channels=1)
    images, labels = read_all(config("sklearn:digits", labels=names), small)
    assert images.shape == (1797, 8, 8, 1)
    assert images.max() == 255
    assert labels[:10] == list(range(10))


@pytest.mark.parametrize(
    ("name", "num_labels", "shape"),
    [
        ("fashion_mnist", 10, (28, 28, 1)),
        ("emnist_letters_50k", 26, (28, 28, 1)),
        ("cifar10", 10, (32, 32, 3)),
    ],
)
def test_packs_of_grey_and_colour_images(
    packs: Path, name: str, num_labels: int, shape: tuple[int, int, int]
) -> None:
    names = tuple(f"class {number}" for number in range(num_labels))
    settings = config(packs / f"{name}.parquet", labels=names, where={"split": "train"})
    part = list_slices(settings)[0]
    records = read_slice(
        part, settings, ImageShape(height=shape[0], width=shape[1], channels=shape[2])
    )
    assert len(records.images) == part.stop - part.start
    assert {image.shape for image in records.images} == {shape}
    assert np.stack(records.images).std() > 20
    assert 0 <= records.labels.min() < records.labels.max() < num_labels


def test_a_label_without_a_record_is_told_and_not_written(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = parquet(tmp_path, image=[png(image) for image in IMAGES])
    tree["private"] = {
        "data": str(data),
        "labels": ["cat", "dog", "unseen-label"],
        "label_values": "position",
    }
    with caplog.at_level("WARNING"):
        run = evolve(Config.from_dict(tree))
    (told,) = [record for record in caplog.records if record.name.endswith("record_embeddings")]
    assert told.getMessage().count("unseen-label") == 1
    assert "cat" not in told.getMessage()
    for file in (file for file in Path(run).rglob("*") if file.is_file()):
        assert b"no record" not in file.read_bytes()


def listed(folder: Path, name: str, rows: list[str]) -> None:
    """A list of images, each of its own, with the columns file_name, label and who."""
    (folder / name).mkdir(parents=True)
    for number, row in enumerate(rows):
        image = np.full((5, 4, 3), 40 * number + len(name), np.uint8)
        (folder / name / f"{row.split(',')[0]}").write_bytes(png(image))
    text = "\n".join(["file_name,label,who", *rows])
    (folder / name / "metadata.csv").write_text(text)


def test_a_user_is_one_however_a_list_writes_the_others(ray_session: None, tmp_path: Path) -> None:
    """001 is a number in a list of numbers, and a name beside A12."""
    listed(tmp_path, "a", ["1.png,cat,001", "2.png,cat,002"])
    listed(tmp_path, "bb", ["1.png,dog,001", "2.png,dog,A12"])
    partitions = collected(opened(config(tmp_path, user_column="who")))
    users = {user for pieces in partitions for piece in pieces for user in piece.users}
    assert len(users) == 3


@pytest.mark.parametrize("user", [7.0, True, [1], {"name": CANARY}, None, ""])
def test_a_user_in_a_tar_is_an_integer_or_text(tmp_path: Path, user: Any) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        about = json.dumps({"label": "cat", "who": user}).encode()
        for name, content in (("1.png", png(IMAGES[0])), ("1.json", about)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    settings = config(tmp_path, user_column="who")
    (part,) = list_slices(settings)
    with pytest.raises(RecordError, match="shard 0, row 0: user is") as caught:
        list(read_records(part, settings, Framing(shape=SHAPE)))
    assert CANARY not in str(caught.value)


def test_an_image_that_a_list_names_is_read_each_time(
    ray_session: None, tmp_path: Path, private_cache: Path
) -> None:
    """The list is as it was, so nothing tells that an embedding of it is an old one."""
    listed(tmp_path, "a", ["1.png,cat,ann", "2.png,dog,bob"])
    opened(config(tmp_path))
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(RecordError, match="row 0: image is missing"):
        opened(config(tmp_path))


@pytest.mark.parametrize("text", ["a.png,cat,CANARY", '{"who": {"CANARY": 1}}'])
def test_what_a_list_without_names_holds_is_not_quoted(tmp_path: Path, text: str) -> None:
    file = tmp_path / ("list.csv" if text.startswith("a") else "list.jsonl")
    file.write_text(f"{text}\n{text}\n")
    if file.suffix == ".jsonl":
        file.write_text('{"file_name": "a.png", "label": "cat", "who": {"CANARY": 1}}\n')
    with pytest.raises(InputError, match=r"^private\.") as caught:
        list_slices(config(file, user_column="who"))
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("how", ["link", "list"])
def test_public_images_that_are_records_by_another_way_are_refused(
    ray_session: None, tmp_path: Path, how: str
) -> None:
    """Their paths tell nothing."""
    records, public = tmp_path / "records", tmp_path / "public"
    for number, place in enumerate([records / "cat", records / "dog", public / "cat"]):
        place.mkdir(parents=True)
        (place / f"{number}.png").write_bytes(png(IMAGES[number]))
    data, images = records, public
    if how == "list":
        data, images = tmp_path / "train.csv", records
        data.write_text("file_name,label\nrecords/cat/0.png,cat\n")
    shown = ImageTable(block="generator", private=False, data=str(public))
    given: dict[str, Any] = {"framing": Framing(shape=SHAPE), "embedder": PIXELS}
    open_records(config(data), **given, shown=[shown])
    if how == "link":
        (public / "more").symlink_to(records / "cat")
    shown = replace(shown, data=str(images))
    with pytest.raises(InputError, match=r"^generator\.data: holds files of private\.data"):
        open_records(config(data), **given, shown=[shown])

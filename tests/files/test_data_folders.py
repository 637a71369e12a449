"""What counts as data in folders as people have them: every file once, and each under its label."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pe_ray import InputError
from pe_ray.files.image_batches import read_batches
from pe_ray.files.image_shards import find_shards
from pe_ray.files.image_tables import ImageTable
from pe_ray.values import Framing, ImageShape

FRAMING = Framing(shape=ImageShape(height=12, width=12, channels=1))
PETS = ["cat"] * 6 + ["dog"] * 4


def png(value: int) -> bytes:
    pixels = np.full((12, 12), value, np.uint8)
    pixels[2:5, 3:9] = 255 - value
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


def pets(labels: list[Any] = PETS, first: int = 0) -> pa.Table:
    images = [png(first + number) for number in range(len(labels))]
    return pa.table({"image": pa.array(images, pa.binary()), "label": labels})


def write(folder: Path, *names: str) -> None:
    """Write a picture of its own under each name."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))


def table(data: Path, **changes: Any) -> ImageTable:
    given = {"block": "private", "private": True, "data": str(data), "labels": ("cat", "dog")}
    return ImageTable(**(given | changes))


def read(given: ImageTable) -> dict[str, int]:
    """Count the rows of each label; all pictures that are read must differ."""
    found = find_shards(given)
    batches = [batch for part in found.shards for batch in read_batches(given, part, FRAMING)]
    pictures = {image.tobytes() for batch in batches for image in batch.images}
    counts = Counter(str(given.labels[label]) for batch in batches for label in batch.labels)
    assert len(pictures) == sum(counts.values())
    return dict(counts)


def passed_over(given: ImageTable) -> set[str]:
    return {name for names in find_shards(given).passed_over.values() for name in names}


@pytest.mark.parametrize(
    "below",
    [".ipynb_checkpoints", "_temporary/0/attempt_0", ".snapshot/daily", "@eaDir", "a/#recycle"],
)
def test_what_programs_leave_behind_is_no_data(tmp_path: Path, below: str) -> None:
    pq.write_table(pets(), tmp_path / "x.parquet")
    (tmp_path / below).mkdir(parents=True)
    pq.write_table(pets(), tmp_path / below / "x.parquet")
    assert read(table(tmp_path)) == {"cat": 6, "dog": 4}
    (name,) = passed_over(table(tmp_path))
    assert f"{below}/".startswith(name)


@pytest.mark.parametrize("kind", ["link", "hard link", "folder"])
def test_a_file_with_two_paths_is_one_file(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    (data / "2026").mkdir(parents=True)
    pq.write_table(pets(), data / "2026" / "x.parquet")
    if kind == "link":
        (data / "2026" / "latest.parquet").symlink_to("x.parquet")
    elif kind == "hard link":
        os.link(data / "2026" / "x.parquet", data / "2026" / "y.parquet")
    else:
        (data / "1-latest").symlink_to("2026")
    assert read(table(data)) == {"cat": 6, "dog": 4}
    assert find_shards(table(data)).num_files == 1


def test_a_file_in_two_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "cat/a.png", "dog/b.png")
    assert read(table(tmp_path)) == {"cat": 1, "dog": 1}
    os.link(tmp_path / "cat" / "a.png", tmp_path / "dog" / "c.png")
    with pytest.raises(InputError, match=r"^private\.data: cat/a\.png and dog/c\.png"):
        read(table(tmp_path))


def test_in_a_split_too_a_file_in_two_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/cat/c.png")
    os.link(tmp_path / "train/cat/a.png", tmp_path / "train/dog/d.png")
    with pytest.raises(InputError, match=r"^private\.data: cat/a\.png and dog/d\.png"):
        read(table(tmp_path, where={"split": "train"}))


@pytest.mark.parametrize("given", ["split", "year"])
def test_a_file_in_two_parts_belongs_to_both(tmp_path: Path, given: str) -> None:
    parts = {"split": ("test", "train"), "year": ("year=2025", "year=2026")}[given]
    write(tmp_path, *(f"{part}/cat/a.png" for part in parts), f"{parts[1]}/dog/b.png")
    os.link(tmp_path / parts[0] / "cat/a.png", tmp_path / parts[1] / "cat/c.png")
    for part, images in zip(parts, ({"cat": 1}, {"cat": 2, "dog": 1}), strict=True):
        assert read(table(tmp_path, where={given: part.rpartition("=")[2]})) == images


@pytest.mark.parametrize(
    ("marker", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "Delta"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
    ],
)
def test_tables_with_old_versions_are_refused(tmp_path: Path, marker: str, kind: str) -> None:
    (tmp_path / "t" / "a=1").mkdir(parents=True)
    pq.write_table(pets(), tmp_path / "t" / "a=1" / "x.parquet")
    (tmp_path / "t" / marker).parent.mkdir()
    (tmp_path / "t" / marker).write_text("{}")
    inside = [tmp_path / "t" / "a=1", tmp_path / "t" / "a=1" / "x.parquet"]
    for data in (tmp_path, tmp_path / "t", *(inside if kind != "Iceberg" else [])):
        with pytest.raises(InputError, match=rf"^private\.data: .*{kind}.*export"):
            read(table(data))


def test_a_label_with_an_underscore_is_one_at_the_top_only(tmp_path: Path) -> None:
    write(tmp_path, "_x/1.png", "dog/2.png", "dog/_x/3.png")
    given = table(tmp_path, labels=("_x", "dog"))
    assert read(given) == {"_x": 1, "dog": 1}
    assert passed_over(given) == {"dog/_x/"}


def test_endings_of_tables_in_any_case(tmp_path: Path) -> None:
    for name, rows in (("a.parquet", (0, 6)), ("b.PARQUET", (6, 2)), ("c.pq", (8, 1))):
        pq.write_table(pets().slice(*rows), tmp_path / name)
    pq.write_table(pets().slice(9, 1), tmp_path / "d.parq")
    assert read(table(tmp_path)) == {"cat": 6, "dog": 4}


def test_flat_folders_say_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "2.png", "cat/3.png")
    with pytest.raises(InputError, match=r"^private\.data: .*label_column: null"):
        read(table(tmp_path))
    assert read(table(tmp_path, labels=("all",), label_column=None)) == {"all": 3}


@pytest.mark.parametrize("form", ["images", "parquet"])
def test_of_splits_one_is_chosen(tmp_path: Path, form: str) -> None:
    if form == "images":
        write(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png")
    else:
        for name, labels in (("train", ["cat", "dog"]), ("test", ["cat"])):
            (tmp_path / name).mkdir()
            pq.write_table(pets(labels, first=len(labels)), tmp_path / name / "x.parquet")
    with pytest.raises(InputError, match=r"^private\.data: .* test, train; .*where: \{split: "):
        read(table(tmp_path))
    with pytest.raises(InputError, match=r"^private\.where\.split: .* test, train"):
        read(table(tmp_path, where={"split": "dev"}))
    assert read(table(tmp_path, where={"split": "train"})) == {"cat": 1, "dog": 1}
    assert read(table(tmp_path / "train")) == {"cat": 1, "dog": 1}
    assert read(table(tmp_path, where={"split": "test"})) == {"cat": 1}


def test_labels_that_are_named_like_splits_are_labels(tmp_path: Path) -> None:
    write(tmp_path, "train/1.png", "test/2.png", "test/3.png")
    assert read(table(tmp_path, labels=("train", "test"))) == {"train": 1, "test": 2}


@pytest.mark.parametrize("form", ["images", "parquet"])
def test_folders_are_columns(tmp_path: Path, form: str) -> None:
    """As Hive and Spark write them; percent-encoded."""
    for number, (label, year) in enumerate([("a cat", 1), ("dog", 1), ("dog", 2)]):
        folder = tmp_path / f"year={year}" / f"label={label.replace(' ', '%20')}"
        folder.mkdir(parents=True)
        if form == "images":
            (folder / "x.png").write_bytes(png(number))
        else:
            pq.write_table(pa.table({"image": [png(number)]}), folder / "part-0.parquet")
    labels = ("a cat", "dog")
    assert read(table(tmp_path, labels=labels)) == {"a cat": 1, "dog": 2}
    assert read(table(tmp_path, labels=labels, where={"year": 1})) == {"a cat": 1, "dog": 1}
    with pytest.raises(InputError, match=r"^private\.where"):
        read(table(tmp_path, labels=labels, where={"year": 3}))
    with pytest.raises(InputError, match=r"^private\.user_column: .*who"):
        read(table(tmp_path, labels=labels, user_column="who"))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.tsv", "metadata.jsonl"])
def test_lists_of_files_have_columns(tmp_path: Path, name: str) -> None:
    """Images that no list names are passed over."""
    write(tmp_path, "images/1.png", "images/2.png", "3.png", "4.png")
    rows = [("images/1.png", "cat", "ann", 1), ("images/2.png", "dog", "bob", 1)]
    rows += [("3.png", "dog", "ann", 2)]
    columns = ("file_name", "label", "who", "part")
    if name.endswith("jsonl"):
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    else:
        mark = "," if name.endswith("csv") else "\t"
        lines = [mark.join(map(str, row)) for row in (columns, *rows)]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    for data in (tmp_path, tmp_path / name):
        assert read(table(data, user_column="who")) == {"cat": 1, "dog": 2}
        assert read(table(data, where={"part": 1})) == {"cat": 1, "dog": 1}
    assert passed_over(table(tmp_path)) == {"4.png"}
    assert find_shards(table(tmp_path)).num_files == 3
    with pytest.raises(InputError, match=r"^private\.where\.split: "):
        read(table(tmp_path, where={"split": "train"}))


def tar(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as made:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("form", ["numbers", "names", "json"])
def test_tars_of_rows(tmp_path: Path, form: str) -> None:
    numbers = {"cat": b"0", "dog": b"1"}
    for shard in range(2):
        members = {}
        for row in range(shard * 5, shard * 5 + 5):
            label, key = PETS[row], f"images/{row:06d}"
            members[f"{key}.PNG"] = png(row)
            about = json.dumps({"label": label, "who": f"u{row}"}).encode()
            members |= {
                "numbers": {f"{key}.cls": numbers[label]},
                "names": {f"{key}.cls": label.encode()},
                "json": {f"{key}.json": about},
            }[form]
        tar(tmp_path / f"{shard:06d}.tar", members)
    if form == "numbers":
        with pytest.raises(InputError, match=r"^private\.data: .*label"):
            read(table(tmp_path))
        assert read(table(tmp_path, label_values="position")) == {"cat": 6, "dog": 4}
        (tmp_path / "classes.json").write_text('["cat", "dog"]')
    assert read(table(tmp_path)) == {"cat": 6, "dog": 4}
    if form == "json":
        assert read(table(tmp_path, user_column="who", where={"who": "u7"})) == {"dog": 1}


def test_several_images_a_row_are_told_apart(tmp_path: Path) -> None:
    members = {"1.png": png(1), "1.mask.png": png(2), "1.cls": b"cat"}
    tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=r"^private\.image_column: "):
        read(table(tmp_path))
    public = {"block": "generator", "private": False}
    with pytest.raises(InputError, match=r"^generator\.image_column: .*mask\.png, png"):
        read(table(tmp_path, **public))
    assert read(table(tmp_path, image_column="mask.png")) == {"cat": 1}
    tar(tmp_path / "a.tar", members | {"1.PNG": png(3)})
    with pytest.raises(InputError, match=r"^generator\.data: .*1\.PNG twice"):
        read(table(tmp_path, **public))

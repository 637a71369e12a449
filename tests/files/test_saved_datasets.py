"""Folders that `datasets` saved: every row once, under the name that its ClassLabel gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
from PIL import Image

from pe_ray import InputError
from pe_ray.files.image_batches import read_batches
from pe_ray.files.image_shards import find_shards, split_shards
from pe_ray.files.image_tables import ImageTable
from pe_ray.values import Framing, ImageShape

FRAMING = Framing(shape=ImageShape(height=12, width=12, channels=1))
LABELS = [1] * 6 + [0] * 4
"""Positions among the names in the files, whose order isn't the configuration's."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def pets(first: int = 0, labels: list[int] = LABELS) -> datasets.Dataset:
    images = [
        Image.fromarray(np.full((12, 12), first + row, np.uint8)) for row in range(len(labels))
    ]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}
    )
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def table(data: Path, **changes: Any) -> ImageTable:
    given = {"block": "private", "private": True, "data": str(data), "labels": ("cat", "dog")}
    return ImageTable(**(given | changes))


def read(given: ImageTable) -> list[tuple[str, int]]:
    """Return the label and the grey value of each row."""
    assert given.labels is not None
    return [
        (given.labels[label], int(image[0, 0, 0]))
        for part in split_shards(find_shards(given).shards)
        for batch in read_batches(given, part, FRAMING)
        for label, image in zip(batch.labels, batch.images, strict=True)
    ]


ALL = [("cat", row) for row in range(6)] + [("dog", row) for row in range(6, 10)]


def test_shards_of_a_saved_data_set(tmp_path: Path) -> None:
    """The caches that `map` leaves beside them are no data."""
    folder = tmp_path / "pets"
    pets().save_to_disk(folder, num_shards=3)
    datasets.load_from_disk(folder).map(lambda row: {"more": 1})
    assert len(list(folder.glob("*.arrow"))) == 4
    assert read(table(folder)) == ALL
    assert read(table(tmp_path)) == ALL
    assert find_shards(table(folder)).num_files == 3
    assert read(table(folder / "data-00000-of-00003.arrow")) == ALL[:4]
    (folder / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(InputError, match=r"^private\.data: .*data-00001-of-00003"):
        read(table(folder))


def test_selected_rows_alone_are_read(tmp_path: Path) -> None:
    pets().select([8, 1]).save_to_disk(tmp_path / "selected")
    pets().filter(lambda row: row["label"] == 0).save_to_disk(tmp_path / "filtered")
    assert read(table(tmp_path / "selected")) == [("dog", 8), ("cat", 1)]
    assert read(table(tmp_path / "filtered")) == ALL[6:]
    state = tmp_path / "selected" / "state.json"  # as versions before 2 wrote a selection
    about = json.loads(state.read_text())
    state.write_text(json.dumps(about | {"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(InputError, match=r"^private\.data: .*flatten_indices"):
        read(table(tmp_path / "selected"))


def test_of_a_dict_of_data_sets_one_is_chosen(tmp_path: Path) -> None:
    """Whatever its name, or where it is the only one."""
    saved = {"train": pets(), "held_out": pets(first=20, labels=[0, 1])}
    datasets.DatasetDict(saved).save_to_disk(
        tmp_path / "two", num_shards={"train": 2, "held_out": 1}
    )
    with pytest.raises(InputError, match=r"^private\.data: .*train, held_out"):
        read(table(tmp_path / "two"))
    with pytest.raises(InputError, match=r"^private\.where\.split: "):
        read(table(tmp_path / "two", where={"split": "test"}))
    assert read(table(tmp_path / "two", where={"split": "train"})) == ALL
    assert read(table(tmp_path / "two", where={"split": "held_out"})) == [("dog", 20), ("cat", 21)]
    assert read(table(tmp_path / "two" / "train")) == ALL
    datasets.DatasetDict({"held_out": saved["held_out"]}).save_to_disk(tmp_path / "one")
    assert len(read(table(tmp_path / "one"))) == 2


@pytest.mark.parametrize("marker", ["dataset_dict.json", "state.json"])
def test_a_damaged_marker_is_one_error(tmp_path: Path, marker: str) -> None:
    pets().save_to_disk(tmp_path)
    (tmp_path / marker).write_text("{")
    with pytest.raises(InputError, match=rf"^private\.data: .*{marker}"):
        read(table(tmp_path))


@pytest.mark.parametrize("form", ["stream", "file"])
def test_views_and_dictionaries_are_columns_like_others(tmp_path: Path, form: str) -> None:
    stored = pets().with_format("arrow")[:]
    names = pa.array(["cat"] * 6 + ["dog"] * 4)
    columns = {
        "image": stored["image"].combine_chunks().field("bytes").cast(pa.binary_view()),
        "label": names.cast(pa.string_view()),
        "who": names.dictionary_encode(),
    }
    file = tmp_path / "pets.arrow"
    if form == "stream":
        with pa.ipc.new_stream(file, pa.table(columns).schema) as sink:
            sink.write_table(pa.table(columns), max_chunksize=3)
    else:
        pyarrow.feather.write_feather(pa.table(columns), str(file), compression="lz4", chunksize=3)
    assert read(table(file, user_column="who")) == ALL
    assert read(table(tmp_path, where={"who": "dog"})) == ALL[6:]
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=r"^private\.data: .*pets\.arrow"):
        read(table(file))

"""Tables of Delta Lake and Iceberg: their current rows; what files can't tell is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pe_ray import InputError
from pe_ray.files.image_batches import count_images, read_batches
from pe_ray.files.image_shards import find_shards
from pe_ray.files.image_tables import ImageTable
from pe_ray.values import Framing, ImageShape

deltalake = pytest.importorskip("deltalake")
pytest.importorskip("pyiceberg")

FRAMING = Framing(shape=ImageShape(height=4, width=4, channels=1))
CAT, DOG = "a cat", "é/=d"
LABELS = [CAT] * 3 + [DOG] * 2
ALL = [(CAT, 0), (CAT, 1), (CAT, 2), (DOG, 3), (DOG, 4)]


def png(value: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(sink, format="PNG")
    return sink.getvalue()


def pets(first: int = 0) -> pa.Table:
    rows = [first + row for row in range(5)]
    images = pa.array([png(row) for row in rows], pa.binary())
    year = pa.array([row % 2 for row in rows])
    return pa.table({"image": images, "label": LABELS, "row": rows, "year": year})


def table(data: Path | str, **changes: Any) -> ImageTable:
    given = {"block": "private", "private": True, "data": str(data), "labels": (DOG, CAT)}
    return ImageTable(**(given | changes))


def read(given: ImageTable) -> list[tuple[str, int]]:
    found = find_shards(given)
    rows = [
        (given.labels[label], int(image[0, 0, 0]))
        for part in found.shards
        for batch in read_batches(given, part, FRAMING)
        for label, image in zip(batch.labels, batch.images, strict=True)
    ]
    assert sum(count_images(given, found.shards)) == len(rows)
    assert len(found.files) == len(found.shards)
    return sorted(rows, key=lambda row: row[1])


def write_delta(folder: Path, by: list[str], **settings: Any) -> Any:
    deltalake.write_deltalake(str(folder), pets(), partition_by=by, **settings)
    return deltalake.DeltaTable(str(folder))


@pytest.fixture(scope="module", autouse=True)
def no_threads_stay() -> Iterator[None]:
    from pyiceberg.utils.concurrent import ExecutorFactory

    yield
    ExecutorFactory.get_or_create().shutdown()


@pytest.fixture
def catalog(tmp_path: Path) -> Any:
    from pyiceberg.catalog.sql import SqlCatalog

    (tmp_path / "ware house").mkdir()
    made = SqlCatalog(
        "tests", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/ware house"
    )
    made.create_namespace("n")
    return made


def write_iceberg(catalog: Any, by: list[str]) -> tuple[Any, Path]:
    made = catalog.create_table("n.pets", schema=pets().schema)
    with made.update_spec() as change:
        for name in by:
            change.add_identity(name)
    made.append(pets())
    return made, Path(made.location().removeprefix("file://"))


@pytest.mark.parametrize("by", [[], ["label"], ["year", "label"]])
@pytest.mark.parametrize("form", ["delta", "iceberg"])
def test_current_rows_alone_are_read(
    tmp_path: Path, catalog: Any, form: str, by: list[str]
) -> None:
    """Deleted rows and old versions lie in the folder still, under any partition."""
    if form == "delta":
        folder = tmp_path / "of pets"
        made = write_delta(folder, by)
        made.delete('"row" = 1')
        deltalake.write_deltalake(str(folder), pets(first=5), mode="append")
    else:
        made, folder = write_iceberg(catalog, by)
        made.delete("row = 1")
        made.append(pets(first=5))
    later = [(label, row + 5) for label, row in ALL]
    assert read(table(folder)) == [ALL[0], *ALL[2:], *later]
    assert find_shards(table(folder)).passed_over["without rows of the table's current version"]
    kept = table(folder, where={"year": 0})
    assert read(kept) == [each for each in (ALL[0], *ALL[2:], *later) if each[1] % 2 == 0]
    with pytest.raises(InputError, match=r"^private\.where"):
        read(table(folder, where={"year": 7}))
    with pytest.raises(InputError, match=r"^private\.user_column: .*who"):
        read(table(folder, user_column="who"))
    if form == "delta":
        made = deltalake.DeltaTable(str(folder))
        made.optimize.compact()
    else:
        made.overwrite(pets(first=5))
    assert read(table(folder))[-5:] == later


def test_delta_tables_that_files_dont_tell_are_refused(tmp_path: Path) -> None:
    write_delta(tmp_path, [])
    log = tmp_path / "_delta_log" / "00000000000000000001.json"
    protocol: dict[str, Any] = {"minReaderVersion": 3, "minWriterVersion": 7}
    for feature in ("deletionVectors", "columnMapping", "unheardOf"):
        features = {"readerFeatures": [feature], "writerFeatures": [feature]}
        log.write_text(json.dumps({"protocol": protocol | features}))
        with pytest.raises(InputError, match=r"^private\.data: .*Delta Lake .*export"):
            read(table(tmp_path))
    first = log.with_name("00000000000000000000.json")
    (about,) = (line for line in first.read_text().splitlines() if "metaData" in line)
    mapped = json.loads(about)
    mapped["metaData"]["configuration"] = {"delta.columnMapping.mode": "name"}
    schema = json.loads(mapped["metaData"]["schemaString"])
    for number, column in enumerate(schema["fields"], start=1):
        column["metadata"] = {
            "delta.columnMapping.id": number,
            "delta.columnMapping.physicalName": column["name"],
        }
    mapped["metaData"]["schemaString"] = json.dumps(schema)
    upgrade = {"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}}
    log.write_text(json.dumps(upgrade) + "\n" + json.dumps(mapped))
    with pytest.raises(InputError, match=r"^private\.data: .*mapping of columns; export"):
        read(table(tmp_path))
    log.unlink()
    assert len(read(table(tmp_path))) == 5
    next(tmp_path.glob("*.parquet")).unlink()
    with pytest.raises(InputError, match=r"^private\.data: .*Delta Lake .*lacks .*export"):
        read(table(tmp_path))


def test_iceberg_tables_that_files_dont_tell_are_refused(tmp_path: Path, catalog: Any) -> None:
    made, folder = write_iceberg(catalog, [])
    with made.update_schema() as change:
        change.add_column("note", made.schema().find_type("label"))
    made.refresh()
    assert read(table(folder)) == ALL
    newest = max((folder / "metadata").glob("*.metadata.json"))
    twin = newest.with_name(newest.name[:6] + "0-twin.metadata.json")
    twin.write_bytes(newest.read_bytes())
    with pytest.raises(InputError, match=r"^private\.data: .*two newest versions; export"):
        read(table(folder))
    (folder / "metadata" / "version-hint.text").write_text("0")
    with pytest.raises(InputError, match=r"^private\.data: .*holds no image"):
        read(table(folder))
    (folder / "metadata" / "version-hint.text").unlink()
    twin.unlink()
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"^private\.data: .*Iceberg .*export"):
        read(table(moved))
    moved.rename(folder)
    with made.update_schema() as change:
        change.rename_column("label", "old")
    with made.update_schema() as change:
        change.add_column("label", made.schema().find_type("old"))
    with pytest.raises(InputError, match=r"^private\.data: .*columns were renamed; export"):
        read(table(folder))


def test_iceberg_files_of_deletes_are_refused(catalog: Any) -> None:
    """As Spark and Flink write them (merge on read)."""
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    made, folder = write_iceberg(catalog, [])
    deletes = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=f"{made.location()}/data/deletes.parquet",
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=1,
    )
    deletes.spec_id = made.spec().spec_id
    with made.transaction() as change, change.update_snapshot().fast_append() as snapshot:
        snapshot.append_data_file(deletes)
    with pytest.raises(InputError, match=r"^private\.data: .*deleted rows in its files; export"):
        read(table(folder))


@pytest.mark.parametrize("form", ["delta", "iceberg"])
def test_a_part_of_such_a_table_is_refused(tmp_path: Path, catalog: Any, form: str) -> None:
    if form == "delta":
        write_delta(tmp_path / "t", ["label"])
        inside = [tmp_path, next((tmp_path / "t").glob("label=*")), *tmp_path.glob("t/*/*.parquet")]
    else:
        _, folder = write_iceberg(catalog, ["label"])
        inside = [folder.parent]
    for data in inside:
        with pytest.raises(InputError, match=r"^private\.data: .*(Delta|Iceberg).*own folder"):
            read(table(data))

"""A check reads every record, goes on after a bad one, and counts as anybody would by hand."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mixed_images import GOOD, save_bad, save_good
from PIL import Image

from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.private import checking
from pe_ray.private.checking import TableReport, check_records, check_table
from pe_ray.private.duplicates import refuse_duplicates
from pe_ray.private.records import find_records, private_table
from pe_ray.values import Framing, ImageShape

FRAMING = Framing(
    shape=ImageShape(height=4, width=4, channels=3), resize="crop", background="black"
)


def config(data: Path, **changes: Any) -> PrivateConfig:
    return PrivateConfig(data=str(data), **{"labels": ("cat", "dog"), **changes})


def check(data: Path, **changes: Any) -> TableReport:
    return check_records(config(data, **changes), FRAMING, 60.0)


def sizes(data: Path) -> Sequence[tuple[str, int]]:
    return find_records(config(data)).files


def png(shade: int, side: int = 4) -> bytes:
    sink = io.BytesIO()
    Image.new("L", (side, side), shade).save(sink, format="PNG")
    return sink.getvalue()


def test_counts_are_those_of_the_files(ray_session: None, tmp_path: Path) -> None:
    save_good(tmp_path)
    report = check(tmp_path)
    assert (report.files, report.records, report.num_faults) == (len(GOOD), len(GOOD), 0)
    assert report.labels == Counter(name.partition("/")[0] for name in GOOD)
    sizes = Counter(size for _, size in GOOD.values())
    assert {(h, w): count for h, w, count in report.sizes} == sizes
    assert report.modes == Counter(mode for mode, _ in GOOD.values())
    assert report.users is None


def test_every_bad_file_is_listed_with_its_reason(ray_session: None, tmp_path: Path) -> None:
    save_good(tmp_path)
    bad = save_bad(tmp_path)
    report = check(tmp_path)
    reasons = {Path(fault.place).relative_to(tmp_path): fault.reason for fault in report.faults}
    assert {str(place) for place in reasons} == bad
    assert len(report.faults) == report.num_faults == len(bad)
    assert "missing" in reasons[Path("dog/gone.png")]
    assert "32-bit" in reasons[Path("dog/float.tiff")]
    assert "can't be decoded" in reasons[Path("cat/cut.png")]
    assert reasons[Path("horse")].startswith("private.labels: ")
    assert report.labels == Counter(name.partition("/")[0] for name in GOOD)


def test_groups_of_equal_files_are_all_listed(ray_session: None, tmp_path: Path) -> None:
    save_good(tmp_path)
    for copied, copies in {"cat/plain.png": 2, "dog/deep.png": 1}.items():
        for number in range(copies):
            content = (tmp_path / copied).read_bytes()
            (tmp_path / "dog" / f"copy-{number}-{Path(copied).name}").write_bytes(content)
    groups = check(tmp_path).duplicates
    assert sorted(sorted(Path(name).name for name in group) for group in groups) == [
        ["copy-0-deep.png", "deep.png"],
        ["copy-0-plain.png", "copy-1-plain.png", "plain.png"],
    ]
    assert check(tmp_path, duplicates="allow").num_duplicates == 0


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Rows of two files with every fault that a row can have, and a third file that is damaged."""
    images = [png(n % 256, 4 + n % 3) for n in range(1200)]
    labels: list[str | None] = ["cat" if n % 3 else "dog" for n in range(1200)]
    users: list[int | None] = [n % 70 for n in range(1200)]
    images[5], images[900], labels[700], users[901], images[701] = b"", None, "cow", None, b"x"
    labels[701] = None
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        some = slice(600 * number, 600 * number + 600)
        columns = {"image": images[some], "label": labels[some], "user": users[some]}
        types = {"image": pa.binary(), "label": pa.string(), "user": pa.int64()}
        schema = pa.schema(list(types.items()))
        pq.write_table(pa.table(columns, schema=schema), folder / f"{number}.parquet")
    damaged = folder / "2.parquet"
    pq.write_table(pa.table({k: v[:600] for k, v in columns.items()}, schema=schema), damaged)
    content = bytearray(damaged.read_bytes())
    content[40:4000] = bytes(3960)
    damaged.write_bytes(content)
    (folder / "3.parquet").write_bytes(b"no parquet")
    return folder


def test_rows_are_named_by_file_and_number(ray_session: None, records: Path) -> None:
    report = check(records, user_column="user")
    found = {
        (Path(file).name, row, fault.reason.removesuffix("; correct or remove it"))
        for fault in report.faults
        for file, _, row in [fault.place.partition(", row ")]
    }
    unknown = "label is not one of private.labels"
    assert {rest for rest in found if rest[1]} == {
        ("0.parquet", "5", "image can't be decoded"),
        ("1.parquet", "300", "image is missing"),
        ("1.parquet", "100", unknown),
        ("1.parquet", "101", unknown),
        ("1.parquet", "101", "image can't be decoded"),
        ("1.parquet", "301", "user is null"),
    }
    assert {file for file, row, _ in found if not row} == {"2.parquet", "3.parquet"}
    assert report.num_faults == 8
    assert report.records == 1200 - 5
    assert report.users == 70
    kept = [n for n in range(1200) if n not in (5, 900, 700, 701, 901)]
    assert report.labels == Counter("cat" if n % 3 else "dog" for n in kept)


@pytest.mark.parametrize("rows", [37, 100, 5000])
def test_a_report_does_not_depend_on_the_slices(
    ray_session: None, records: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    expected = check(records, user_column="user")

    def split(shards: Any) -> Any:
        for shard in shards:
            for start in range(0, shard.stop, rows):
                yield replace(shard, start=start, stop=min(start + rows, shard.stop))

    monkeypatch.setattr(checking, "split_shards", lambda shards: list(split(shards)))
    assert check(records, user_column="user") == expected


def test_the_list_ends_but_the_count_does_not(ray_session: None, tmp_path: Path) -> None:
    images = [b"x"] * 1500 + [png(1)]
    table = pa.table({"image": images, "label": ["cat"] * 1501})
    pq.write_table(table, tmp_path / "records.parquet")
    report = check(tmp_path)
    assert report.num_faults == 1500
    rows = [int(fault.place.rpartition(" ")[2]) for fault in report.faults]
    assert rows == list(range(checking.MOST_LISTED))


def test_images_that_a_list_names_are_places(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.png,cat\n2.png,dog\n1.png,cow\n")
    places = [fault.place for fault in check(tmp_path).faults]
    assert places == [
        f"{tmp_path / '2.png'} ({tmp_path / 'metadata.csv'}, row 1)",
        f"{tmp_path / '1.png'} ({tmp_path / 'metadata.csv'}, row 2)",
    ]


def test_a_filter_that_keeps_nothing_is_named(ray_session: None, records: Path) -> None:
    (records / "3.parquet").unlink()
    (records / "2.parquet").unlink()
    with pytest.raises(InputError, match=r"^private\.where: "):
        check(records, where={"user": 4711})


def test_a_public_table_is_read_alike_and_quotes_labels(ray_session: None, records: Path) -> None:
    settings = config(records)
    table = replace(private_table(settings), private=False, block="metrics.public")
    public, private = check_table(table, FRAMING, 60.0), check(records)
    assert public.labels == private.labels
    assert [fault.place for fault in public.faults] == [fault.place for fault in private.faults]
    assert any("'cow'" in fault.reason for fault in public.faults)
    assert not any("cow" in fault.reason for fault in private.faults)


def test_a_run_is_refused_with_two_of_the_equal_files(ray_session: None, tmp_path: Path) -> None:
    save_good(tmp_path)
    copy = tmp_path / "cat" / "aa.png"
    copy.write_bytes((tmp_path / "cat" / "plain.png").read_bytes())
    with pytest.raises(InputError, match=r"^private\.data: .*aa\.png and .*plain\.png have"):
        refuse_duplicates(sizes(tmp_path), config(tmp_path), 60.0)
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")  # left to the reader
    (tmp_path / "dog" / "none.png").symlink_to(tmp_path / "nothing.png")
    copy.unlink()
    refuse_duplicates(sizes(tmp_path), config(tmp_path), 60.0)

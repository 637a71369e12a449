"""Whatever lies in a folder, each record counts once under its own label, or the run is refused."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from pe_ray import InputError, plugins
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.kinds import FixedEmbedderPlugin
from pe_ray.private.record_embeddings import open_records
from pe_ray.values import Framing, ImageShape

SIDE = 6
FRAMING = Framing(shape=ImageShape(height=SIDE, width=SIDE, channels=1))
PIXELS = TypeAdapter(FixedEmbedderPlugin).validate_python({"kind": "pixels", "size": SIDE})
LABELS = ("cat", "dog", "_odd", "train")
HARMLESS = ("hidden", "temporary", "nas", "desktop", "link", "hard link", "folder link", "notes")
HARMFUL = ("copy", "two labels", "other label", "other image", "no label")


@dataclass
class Record:
    number: int
    label: str

    @property
    def pixels(self) -> np.ndarray:
        rng = np.random.default_rng(self.number)
        return rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)

    @property
    def png(self) -> bytes:
        sink = io.BytesIO()
        Image.fromarray(self.pixels).save(sink, format="PNG")
        return sink.getvalue()


def write_records(root: Path, form: str, records: list[Record], split: str | None) -> list[Path]:
    """Write the records in one of the layouts; return its files."""
    root = root / split if split else root
    root.mkdir(parents=True, exist_ok=True)
    made = []
    if form == "images":
        for record in records:
            ending = ("png", "PNG", "Png")[record.number % 3]
            deep = ("", "a b/", "x/y/")[record.number % 5 % 3]
            made.append(root / record.label / f"{deep}{record.number}.{ending}")
            made[-1].parent.mkdir(parents=True, exist_ok=True)
            made[-1].write_bytes(record.png)
        return made
    if form == "list":
        for record in records:
            made.append(root / "images" / f"{record.number}.png")
            made[-1].parent.mkdir(exist_ok=True)
            made[-1].write_bytes(record.png)
        rows = [f"images/{record.number}.png,{record.label}" for record in records]
        (root / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
        return made
    if form == "hive":
        for label in sorted({record.label for record in records}):
            made.append(root / f"label={label}" / "part-0.parquet")
            made[-1].parent.mkdir()
            images = [record.png for record in records if record.label == label]
            pq.write_table(pa.table({"image": images}), made[-1])
        return made
    for shard, start in enumerate(range(0, len(records), 3)):
        chosen = records[start : start + 3]
        if form == "parquet":
            made.append(root / f"part-{shard}.{('parquet', 'PQ', 'parq')[shard % 3]}")
            images, labels = [r.png for r in chosen], [r.label for r in chosen]
            pq.write_table(pa.table({"image": images, "label": labels}), made[-1])
        else:
            made.append(root / f"{shard:04d}.tar")
            with tarfile.open(made[-1], "w") as tar:
                for record in chosen:
                    members = {"png": record.png, "cls": record.label.encode()}
                    for ending, content in members.items():
                        entry = tarfile.TarInfo(f"{record.number}.{ending}")
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
    return made


def add_clutter(root: Path, form: str, files: list[Path], what: str, draw: int) -> None:
    """Add something that is no further record, or that nobody can tell the meaning of."""
    file = files[draw % len(files)]
    stranger = Record(10_000 + draw, "cat").png
    if what in ("hidden", "temporary", "nas"):
        name = {"hidden": ".snapshot", "temporary": "_temporary/0", "nas": "@eaDir"}[what]
        place = file.parent / name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    elif what == "desktop":
        (file.parent / "Thumbs.db").write_bytes(stranger)
        (file.parent / f"._{file.name}").write_bytes(b"fork")
    elif what == "link":
        (file.parent / f"0{draw}{file.name}").symlink_to(file.name)
    elif what == "hard link":
        os.link(file, file.parent / f"1{draw}{file.name}")
    elif what == "folder link":
        (file.parent / f"2{draw}").symlink_to(".")
    elif what == "notes":
        (file.parent / f"notes{draw}.txt").write_text("no image")
    elif what == "copy":
        shutil.copy(file, file.parent / f"3{draw}{file.name}")
    elif form == "images" and what == "two labels":
        others = [label for label in LABELS if f"/{label}/" not in str(file)]
        base = next(p for p in file.parents if p.name in LABELS).parent
        (base / others[0]).mkdir(exist_ok=True)
        os.link(file, base / others[0] / f"4{draw}.png")
    elif form == "images" and what == "other label":
        base = next(p for p in file.parents if p.name in LABELS).parent
        (base / f"cow{draw}").mkdir()
        (base / f"cow{draw}" / "1.png").write_bytes(stranger)
    elif what == "other image":
        (file.parent / f"5{draw}.heic").write_bytes(stranger)
    elif form == "images" and what == "no label":
        base = next(p for p in file.parents if p.name in LABELS).parent
        (base / f"6{draw}.png").write_bytes(stranger)


def read(data: Path, split: str | None) -> Counter[tuple[int, bytes]]:
    """Count what votes: (label, embedding) of each record, at no noise."""
    config = PrivateConfig(
        data=str(data), labels=LABELS, cache="none", where={"split": split} if split else {}
    )
    records = open_records(config, framing=FRAMING, embedder=PIXELS)
    found: Counter[tuple[int, bytes]] = Counter()
    for pieces in records.partitions:
        for piece in ray.get(pieces):
            rows = zip(piece.labels.tolist(), piece.features, strict=True)
            found.update((label, feature.tobytes()) for label, feature in rows)
    return found


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    form=st.sampled_from(["images", "parquet", "tar", "list", "hive"]),
    labels=st.lists(st.sampled_from(LABELS), min_size=1, max_size=8),
    split=st.sampled_from([None, None, "train", "val"]),
    clutter=st.lists(st.sampled_from(HARMLESS + HARMFUL), max_size=4, unique=True),
    draw=st.integers(0, 99),
)
def test_each_record_votes_once_or_the_run_is_refused(
    ray_session: None,
    form: str,
    labels: list[str],
    split: str | None,
    clutter: list[str],
    draw: int,
) -> None:
    records = [Record(number, label) for number, label in enumerate(labels)]
    expected: Counter[tuple[int, bytes]] = Counter()
    made = plugins.build("embedder", PIXELS.kind, PIXELS.options)
    for record in records:
        feature = made.embed(record.pixels[None, :, :, None])[0]
        expected[LABELS.index(record.label), np.float32(feature).tobytes()] += 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        files = write_records(root, form, records, split)
        if split:
            write_records(root, form, [Record(500, "dog")], "test")
        for what in clutter:
            add_clutter(root, form, files, what, draw)
        try:
            found = read(root, split)
        except InputError:
            # A folder named train, where that is a label too, may be either.
            assert set(clutter) & set(HARMFUL) or (form == "images" and split == "train")
        else:
            assert found == expected

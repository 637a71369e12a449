"""A small public image set: random pictures of each class, in folders or in a parquet file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 16


def pictures(num: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Smooth random pictures, uint8 [num, side, side, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    resized = [Image.fromarray(image).resize((side, side)) for image in coarse]
    return np.stack([np.asarray(image) for image in resized])


def save_public(folder: Path, classes: Sequence[str], each: int = 20) -> Path:
    """A folder per class with PNG images; class i holds pictures i * each and on."""
    images = pictures(len(classes) * each)
    for position, image in enumerate(images):
        below = folder / classes[position // each]
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(below / f"{position:05d}.png")
    return folder


def save_parquet(folder: Path, classes: Sequence[str | int], each: int = 20) -> Path:
    """The same as parquet files of 25 rows: image as {bytes, path}, label as given."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = []
    for image in pictures(len(classes) * each):
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, format="PNG")
        cells.append({"bytes": sink.getvalue(), "path": None})
    labels = [name for name in classes for _ in range(each)]
    for start in range(0, len(cells), 25):
        table = pa.table({"image": cells[start : start + 25], "label": labels[start : start + 25]})
        pq.write_table(table, folder / f"{start:05d}.parquet")
    return folder

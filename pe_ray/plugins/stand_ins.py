"""Rehearsals: the same run with small stand-ins of its data, networks and services.

Every block and every plugin's options say in `rehearsal` what stands in for them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pe_ray.files.png import encode_png

_LEAST_IMAGES = 64
_BLOCKS, _SIDE = 4, 32  # of a stand-in image


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What the parts of a rehearsed run are told.

    folder: where stand-ins are written. iterations: those of the run that are kept, ascending.
    """

    folder: Path
    labels: tuple[str, ...]
    iterations: tuple[int, ...]
    num_samples: int

    def make_folder(self, name: str) -> Path:
        """Return a new folder for the files of one stand-in."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def move(self, iteration: int) -> int:
        """Return which iteration of the rehearsal stands for one of the run; 0 for 0."""
        return sum(t < iteration for t in self.iterations) + 1 if iteration else 0

    def write_images(self, name: str, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """Write random images of each class as a table; return the keys of a block that reads it.

        classes: default, the labels. The table has the columns image, label and user.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = [*(self.labels if classes is None else classes)]
        num = max(_LEAST_IMAGES, 2 * len(names))
        coarse = np.random.default_rng().integers(
            0, 256, (num, _BLOCKS, _BLOCKS, 3), dtype=np.uint8
        )
        images = coarse.repeat(_SIDE // _BLOCKS, axis=1).repeat(_SIDE // _BLOCKS, axis=2)
        table = {
            "image": [{"bytes": encode_png(image), "path": None} for image in images],
            "label": [names[row % len(names)] for row in range(num)],
            "user": list(range(num)),
        }
        folder = self.make_folder(name)
        pq.write_table(pa.table(table), folder / "images.parquet")
        return {"data": str(folder), "image_column": "image"}

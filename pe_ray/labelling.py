"""Labels and scores of a run's teacher for any images: post-processing, free."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pe_ray.config.blocks import ResourcesConfig
from pe_ray.config.extras import require_extras
from pe_ray.config.places import apart, lies_in
from pe_ray.errors import InputError
from pe_ray.files.array_files import encode_table
from pe_ray.files.image_batches import read_batches
from pe_ray.files.image_shards import list_shards, split_shards
from pe_ray.files.image_tables import ImageTable, TableSlice
from pe_ray.files.storage import GivenPath, Location, atomic_write, require_writable, resolve_place
from pe_ray.release.evidence import open_run
from pe_ray.run_context import RunContext
from pe_ray.runtime.cluster import connect_to_ray
from pe_ray.runtime.progress import Progress
from pe_ray.runtime.watchdog import note_progress
from pe_ray.runtime.workers import map_in_workers
from pe_ray.synthetic.teacher import load_teacher, require_teacher

Labelled = tuple[NDArray[np.int32], NDArray[np.float32]]


def label_images(
    run_path: GivenPath,
    images: GivenPath,
    output: GivenPath,
    resources: ResourcesConfig | None = None,
    image_column: str = "image",
) -> Location:
    """Write the teacher's label and score of each image to a parquet file; return its path.

    images: as private.data. Rows are in their order. Columns: label (int64, with the label names as
    `datasets` reads them) and score (float32). Ten bytes a row are held here, images only by
    workers. Raises InputError where the run has no finished teacher, an image can't be read, or the
    images are the private ones: labels of those are no post-processing.
    """
    run = open_run(run_path, resources)
    config, teacher = run.config, run.config.teacher
    if teacher is None:
        raise InputError(
            f"run {run_path}: has no teacher; make a run with the block `teacher` (docs/teacher.md)"
        )
    if not apart(str(images), {}, config.private):
        raise InputError(
            f"IMAGES: {images} holds the run's private records, and labels of those would say more "
            "of them than was released; give other images"
        )
    require_extras(teacher, "teacher")
    require_teacher(run)
    table = ImageTable(
        block="label",
        private=False,
        data=str(images),
        image_column=image_column,
        label_column=None,
        fields={"data": "IMAGES", "image_column": "--image-column"},
    )
    slices = split_shards(list_shards(table))
    place = resolve_place(output, "--output")
    for data in (str(images), config.private.data):
        if lies_in(str(place), data):
            raise InputError(f"--output: {place} lies in {data}; give a file elsewhere")
    if isinstance(place, Path) and place.is_dir():
        raise InputError(f"--output: {place} is a folder; give a file")
    require_writable(place.parent, "--output")
    found: list[Labelled] = []
    with (
        connect_to_ray(config.resources),
        Progress("labels", sum(part.stop - part.start for part in slices)) as progress,
    ):
        requests = [(run, table, part) for part in slices]
        for made in map_in_workers(_label_slice, requests, config.resources):
            found.append(made)
            progress.add(len(made[0]))
    labels, scores = (np.concatenate(column) for column in zip(*found, strict=True))
    features = {
        "label": {"_type": "ClassLabel", "names": list(run.labels)},
        "score": {"_type": "Value", "dtype": "float32"},
    }
    written = pa.table({"label": labels.astype(np.int64), "score": scores})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    atomic_write(place, encode_table(written.replace_schema_metadata(metadata)))
    return place


def _label_slice(run: RunContext, table: ImageTable, part: TableSlice) -> Labelled:
    teacher = load_teacher(run)
    assert teacher is not None
    labels, scores = [], []
    for batch in read_batches(table, part, run.config.framing):
        label, score = teacher.score(batch.images)
        labels.append(label)
        scores.append(score)
        note_progress()
    return np.concatenate(labels), np.concatenate(scores)

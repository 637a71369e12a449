"""Final choice: which samples of S_T form the final set, by the teacher; post-processing.

Each label gets its share of `teacher.keep`, out of the distinct images that the teacher gives it.
They are taken one by one, so that the mean of their features follows the label's mean feature,
which is released with the teacher (herding: Welling, ICML 2009). Or they are those with the largest
scores. A label with too few images keeps all it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.files.array_files import encode_array, write_arrays
from pe_ray.files.parts import Part, list_parts, write_part
from pe_ray.files.storage import Location, delete_tree, open_fully
from pe_ray.run_context import RunContext
from pe_ray.runtime.stages import Stage, run_stage
from pe_ray.runtime.watchdog import note_progress
from pe_ray.runtime.workers import PartWorker, map_in_workers
from pe_ray.synthetic.population import Population, final_population
from pe_ray.synthetic.population_files import read_population
from pe_ray.synthetic.teacher import Teacher, read_weights
from pe_ray.values import LabelLayout

Floats = NDArray[np.float32]


def choose_final(run: RunContext, population: Population, layout: LabelLayout) -> Population:
    """Return the samples of S_T that form the final set; they are chosen unless that is done.

    layout: how many of each label are wanted. One Ray task for each label holds the features of the
    label's images.
    """
    directory = run.directory
    if not directory.final_ids.exists():
        features = directory.teacher / "embedding"
        stage = Stage(
            name="final choice",
            directory=features,
            suffix="npy",
            requests=run.divide(population.layout.num_samples),
            worker=partial(_FeatureWorker, run, population, features),
            check_found=True,
        )
        run_stage(stage, run.config.resources)
        parts = [features / part.file for part in list_parts(features)]
        on_cpus = run.config.resources.model_copy(update={"gpus_per_worker": 0.0})
        wanted = [(run, parts, label, num) for label, num in enumerate(layout.counts)]
        ids = np.sort(np.concatenate([*map_in_workers(_choose_label, wanted, on_cpus)]))
        write_arrays(directory.final_ids, {"ids": ids})
        delete_tree(features)
    return final_population(run)


class _FeatureWorker(PartWorker):
    """Writes the teacher's features of S_T, each with a digest of its image."""

    def __init__(self, run: RunContext, population: Population, directory: Location) -> None:
        self._run, self._population, self._directory = run, population, directory
        self._teacher = Teacher(run)

    def make(self, request: Mapping[str, Any]) -> Part:
        start, stop = request["start"], request["stop"]
        options = self._run.config.generator_at(self._population.iteration).options
        ids = np.arange(start, stop, dtype=np.int64)
        images = read_population(self._population.directory, ids, options)["image"]
        features = self._teacher.embed(images)
        rows = np.empty(len(ids), [("features", "f4", features.shape[1]), ("image", "S16")])
        rows["features"] = features
        rows["image"] = [_digest(image) for image in images]
        return write_part(self._directory, start, stop, "npy", encode_array(rows))


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest().encode()


def _choose_label(
    run: RunContext, parts: Sequence[Location], label: int, num: int
) -> NDArray[np.int64]:
    """Return the ids of `num` images of a label, or of all, if there are fewer."""
    assert run.config.teacher is not None
    weights, means = read_weights(run)
    ids, features, images, first = [], [], [], 0
    for file in parts:
        rows = np.load(open_fully(file), allow_pickle=False)
        own = np.flatnonzero((rows["features"] @ weights).argmax(axis=1) == label)
        ids.append(first + own)
        features.append(rows["features"][own])
        images.append(rows["image"][own])
        first += len(rows)
        note_progress()
    distinct = np.sort(np.unique(np.concatenate(images), return_index=True)[1])
    made = np.concatenate(features)[distinct]
    if run.config.teacher.keep_by == "score":
        chosen = np.argsort(-(made @ weights[:, label]), kind="stable")[:num]
    else:
        chosen = herd(made, means[:, label], num)
    return np.asarray(np.concatenate(ids)[distinct[chosen]], dtype=np.int64)


def herd(features: Floats, mean: NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """Choose `num` rows of features [n, d], or all, so that their mean follows `mean` [d].

    Herding (Welling 2009, equations 9 and 10): w = mean; repeat: take the row x, of those that are
    left, with the largest w.x, and add mean - x to w.
    """
    left = min(num, len(features))
    chosen = np.empty(left, dtype=np.int64)
    along = features @ mean.astype(np.float32)
    values = along.copy()
    for position in range(left):
        best = chosen[position] = values.argmax()
        values += along - features @ features[best]
        values[best] = -np.inf
        note_progress()
    return chosen

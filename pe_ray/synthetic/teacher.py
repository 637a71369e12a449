"""Teacher: a ridge regression from released moments that labels the final images.

Its features come from a network trained on the last released population. Its weights W minimise
|F W - Y|^2 + c |W - P|^2 over the private records' features F and labels Y. F^T F and F^T Y are
released with noise. P gives the population's images the labels that they were made for.
Everything here is post-processing.
"""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.embedders import label_features
from pe_ray.components.moments import GRAM_SHARE, Floats, RidgeMoments
from pe_ray.config import Config
from pe_ray.config.blocks import TeacherConfig
from pe_ray.config.kinds import Plugin
from pe_ray.errors import DamagedFileError, InputError
from pe_ray.files.digests import compute_digest, locate_digest, write_with_digest
from pe_ray.files.image_batches import evenly_spaced
from pe_ray.files.storage import Location
from pe_ray.plugins import Images
from pe_ray.run import Run
from pe_ray.runtime.run_directory import WEIGHTS_FILE
from pe_ray.runtime.stages import fetch, run_in_worker
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.population_files import read_population
from pe_ray.values import NoisySums

FEATURES_FILE = "features.npz"
_LEAST = 1e-3  # mean eigenvalue, in records: noise may leave less, or none
_MOST_IMAGES = 60_000  # trained on, evenly spaced


def moments_layout(run: Run) -> RidgeMoments:
    """Return how the sums of this run's teacher lie in the release."""
    teacher = run.config.teacher
    assert teacher is not None
    return RidgeMoments(num_features=teacher.features, num_labels=len(run.labels))


def learn_features(run: Run, population: Population) -> Plugin:
    """Return an embedder that was trained on S_T, in one Ray task where it isn't yet.

    InputError where features that were lost can't be made the same again: the release may be of
    the former ones.
    """
    import ray

    teacher = run.config.teacher
    assert teacher is not None
    file = run.directory.teacher / FEATURES_FILE
    if file.exists():
        label_features.read(file)
    else:
        content = fetch(ray.remote(num_cpus=1)(_learn).remote(run, population))
        digest = locate_digest(file)
        if digest.exists() and digest.read_bytes() != compute_digest(content).encode():
            raise InputError(
                f"{file}: was damaged, and this machine doesn't make the same again; restore it "
                "from a copy, or repeat the command on a machine like the one that made it"
            )
        write_with_digest(file, content)
    options = label_features.LearntFeaturesOptions(file=str(file), num_features=teacher.features)
    return Plugin(plugin_type="embedder", kind=label_features.KIND, options=options)


def try_teacher(config: Config) -> None:
    """Learn features from a few random images, in a worker, where the run has a teacher."""
    if config.teacher is not None:
        run_in_worker(_try_features, config, config.teacher, resources=config.resources)


def _try_features(config: Config, teacher: TeacherConfig) -> None:
    shape, num_labels = config.image_shape, len(config.private.labels)
    labels = np.tile(np.arange(num_labels, dtype=np.int32), 2)
    size = (len(labels), shape.height, shape.width, shape.channels)
    images = np.random.default_rng(0).integers(0, 256, size=size, dtype=np.uint8)
    label_features.fit(images, labels, teacher.features, 1, config.schedule.seed)


def _learn(run: Run, population: Population) -> bytes:
    """Train the features and return them as a file's content, below 4 MB."""
    teacher = run.config.teacher
    assert teacher is not None
    ids = evenly_spaced(population.layout.num_samples, _MOST_IMAGES)
    options = run.config.generator_at(population.iteration).options
    rows = read_population(population.directory, ids, options)
    arrays = label_features.fit(
        rows["image"], rows["label"], teacher.features, teacher.epochs, run.config.schedule.seed
    )
    return label_features.encode(arrays)


def solve_teacher(run: Run, sums: NoisySums) -> None:
    """Solve for the teacher's weights, unless that is done."""
    folder = run.directory.teacher
    with suppress(DamagedFileError):
        if (folder / WEIGHTS_FILE).exists():
            label_features.read_arrays(folder / WEIGHTS_FILE)
            return
    gram, cross = moments_layout(run).unpack(sums.sums)
    prior = np.zeros_like(cross)
    given = label_features.read(folder / FEATURES_FILE)["prior"]
    prior[:, : given.shape[1]] = given
    weights = ridge(gram, cross, sums.release.sigma, prior)
    label_features.write(folder / WEIGHTS_FILE, {"weights": weights})


def ridge(gram: Floats, cross: Floats, sigma: float, prior: Floats) -> Floats:
    """Return weights [num_features, num_labels] from moments with noise `sigma`, drawn to `prior`.

    W = P + (G + c I)^-1 (C - G P) of G = F^T F, C = F^T Y. The noisy G is replaced by the nearest
    positive semidefinite matrix (negative eigenvalues to 0; Higham 1988). c = z^2 / g: g is the
    mean of its eigenvalues, z = 2 s sqrt(d / 2) the spectral norm of its noise, s / sqrt(2) that of
    its off-diagonal entries (Wigner). So c / g, how far a typical direction is drawn to P, falls
    as the square of the noise (benchmarks/mnist says what else was tried).
    """
    size = len(gram)
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0.0)
    noise = 2.0 * sigma / math.sqrt(GRAM_SHARE) * math.sqrt(size / 2)
    typical = max(float(np.trace(gram)) / size, _LEAST)
    strength = noise**2 / typical + 1e-9 * max(float(values.max()), 1.0)
    rotated = vectors.T @ prior
    return np.asarray(
        prior + (vectors / (values + strength)) @ (vectors.T @ cross - values[:, None] * rotated)
    )


class Teacher:
    """Labels images by the largest component of W^T f."""

    def __init__(self, folder: Location, num_features: int) -> None:
        options = label_features.LearntFeaturesOptions(
            file=str(folder / FEATURES_FILE), num_features=num_features
        )
        self._features = label_features.LearntFeatures(options)
        self._weights = label_features.read_arrays(folder / WEIGHTS_FILE)["weights"]

    def predict(self, images: Images) -> NDArray[np.int32]:
        """Return the labels of images, int32 [n]."""
        scores = self._features.embed(images).astype(np.float64) @ self._weights
        return np.asarray(scores.argmax(axis=1).astype(np.int32))


def load_teacher(run: Run) -> Teacher | None:
    """Load the run's teacher, None where it has none; InputError where it is not finished."""
    if run.config.teacher is None:
        return None
    folder = run.directory.teacher
    if not (folder / WEIGHTS_FILE).exists():
        raise InputError(
            f"run: not finished, {folder} holds no weights; run the same `pe-ray run` command first"
        )
    return Teacher(folder, run.config.teacher.features)

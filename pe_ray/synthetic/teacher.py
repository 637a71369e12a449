"""Teacher: a ridge regression from released moments that labels images.

Its features come from a network trained on the last released population, or from an embedder that
is whitened on public images. Its weights W minimise |F W - Y|^2 + c |W - P|^2 over the private
records' features F and labels Y. F^T F and F^T Y are released with noise. With the network, P gives
the population's images the labels that they were made for; with an embedder it is 0. Everything
here is post-processing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.embedders import label_features
from pe_ray.components.moments import GRAM_SHARE, Floats, RidgeMoments
from pe_ray.config import Config
from pe_ray.config.blocks import TeacherConfig
from pe_ray.config.kinds import Plugin
from pe_ray.errors import InputError
from pe_ray.files.array_files import (
    encode_arrays,
    holds_arrays,
    keep_arrays,
    read_arrays,
    write_arrays,
)
from pe_ray.plugins import Embedder, Images, build
from pe_ray.run_context import RunContext
from pe_ray.runtime.cluster import use_ray
from pe_ray.runtime.named_files import require_same_files
from pe_ray.runtime.run_directory import WEIGHTS_FILE
from pe_ray.runtime.workers import check_plugins, fetch, run_in_worker
from pe_ray.synthetic.learnt_embedder import locate_whitened
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.population_files import read_spaced_samples
from pe_ray.values import NoisySums

FEATURES_FILE = "features.npz"
_LEAST = 1e-3  # mean eigenvalue, in records: noise may leave less, or none
_MOST_IMAGES = 60_000  # trained on, evenly spaced


def moments_layout(run: RunContext) -> RidgeMoments:
    """Return how the sums of this run's teacher lie in the release."""
    teacher = run.config.teacher
    assert teacher is not None
    return RidgeMoments(num_features=teacher.features, num_labels=len(run.labels))


def learn_features(run: RunContext, population: Population) -> Plugin:
    """Return the features' embedder; a network is trained on S_T in a Ray task if it isn't yet.

    InputError where features that were lost can't be made the same again: the release may be of
    the former ones.
    """
    teacher = run.config.teacher
    assert teacher is not None
    file = run.directory.teacher / FEATURES_FILE
    if teacher.embedder is None:
        if file.exists():
            label_features.read(file)
        else:
            keep_arrays(file, fetch(use_ray().remote(num_cpus=1)(_learn).remote(run, population)))
    return _find_features(run)


def _find_features(run: RunContext) -> Plugin:
    teacher = run.config.teacher
    assert teacher is not None
    if teacher.embedder is not None:
        return locate_whitened(run.config, run.directory, teacher.whitened)
    options = label_features.LearntFeaturesOptions(
        file=str(run.directory.teacher / FEATURES_FILE), num_features=teacher.features
    )
    return Plugin(plugin_type="embedder", kind=label_features.KIND, options=options)


def try_teacher(config: Config) -> None:
    """Make features of a few random images, in a worker, where the run has a teacher."""
    if config.teacher is None:
        return
    if config.teacher.embedder is not None:  # it is whitened before a record is read
        check_plugins([config.teacher.embedder], config.private.labels, config.resources)
    else:
        run_in_worker(_try_features, config, config.teacher, resources=config.resources)


def _try_features(config: Config, teacher: TeacherConfig) -> None:
    shape, num_labels = config.image_shape, len(config.private.labels)
    num_images = max(2 * num_labels, teacher.features)  # whitening needs as many as features
    labels = np.arange(num_images, dtype=np.int32) % num_labels
    size = (len(labels), shape.height, shape.width, shape.channels)
    images = np.random.default_rng(0).integers(0, 256, size=size, dtype=np.uint8)
    label_features.fit(images, labels, teacher.features, 1, config.schedule.seed)


def _learn(run: RunContext, population: Population) -> bytes:
    """Train the features and return them as a file's content, below 4 MB."""
    teacher = run.config.teacher
    assert teacher is not None
    rows = read_spaced_samples(run.config, population, _MOST_IMAGES)
    arrays = label_features.fit(
        rows["image"], rows["label"], teacher.features, teacher.epochs, run.config.schedule.seed
    )
    return encode_arrays(arrays)


def solve_teacher(run: RunContext, sums: NoisySums) -> None:
    """Solve for the teacher's weights, unless that is done."""
    teacher, folder = run.config.teacher, run.directory.teacher
    assert teacher is not None
    if holds_arrays(folder / WEIGHTS_FILE):
        return
    gram, cross = moments_layout(run).unpack(sums.sums)
    prior = np.zeros_like(cross)
    if teacher.embedder is None:
        given = label_features.read(folder / FEATURES_FILE)["prior"]
        prior[:, : given.shape[1]] = given
    sigma = sums.release.sigma
    weights = ridge(gram, cross, sigma, prior)
    means = find_means(gram, cross, sigma)
    write_arrays(folder / WEIGHTS_FILE, {"weights": weights, "means": means})


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


def find_means(gram: Floats, cross: Floats, sigma: float) -> Floats:
    """Return the mean feature of each label's records, [num_features, num_labels], norm at most 1.

    F^T Y holds their sums. Their number is u^T F^T y, where u gives every record 1, so it needs
    features from which a constant can be told, as whitened ones are.
    """
    ones = ridge(gram, cross.sum(axis=1, keepdims=True), sigma, np.zeros((len(gram), 1)))
    means = cross / np.maximum(ones.T @ cross, 1.0)
    return np.asarray(means / np.maximum(np.linalg.norm(means, axis=0), 1.0))


def read_weights(run: RunContext) -> tuple[Floats, Floats]:
    """Return the weights and the labels' mean features, both [num_features, num_labels]."""
    arrays = read_arrays(run.directory.teacher / WEIGHTS_FILE)
    return arrays["weights"], arrays["means"]


class Teacher:
    """Labels images by the largest component of W^T f, which is their score.

    A score is near 1 where f is as the records of the label have it, for any number of labels.
    """

    def __init__(self, run: RunContext) -> None:
        plugin = _find_features(run)
        self._features: Embedder = build("embedder", plugin.kind, plugin.options)
        self._weights = read_arrays(run.directory.teacher / WEIGHTS_FILE)["weights"]

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return the features of images, float32 [n, num_features]."""
        return self._features.embed(images)

    def predict(self, images: Images) -> NDArray[np.int32]:
        """Return the labels of images, int32 [n]."""
        return self.score(images)[0]

    def score(self, images: Images) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return labels, int32 [n], and scores, float32 [n], of images."""
        found = self._features.embed(images).astype(np.float64) @ self._weights
        labels = found.argmax(axis=1).astype(np.int32)
        return labels, found.max(axis=1).astype(np.float32)


def load_teacher(run: RunContext) -> Teacher | None:
    """Load the run's teacher, None where it has none; InputError where it is not finished."""
    require_teacher(run)
    return Teacher(run) if run.config.teacher else None


def require_teacher(run: RunContext) -> None:
    """Raise InputError where the run's teacher is not finished, or its embedder's files changed."""
    teacher, folder = run.config.teacher, run.directory.teacher
    if teacher is None:
        return
    if not (folder / WEIGHTS_FILE).exists():
        raise InputError(
            f"run: not finished, {folder} holds no weights; run the same `pe-ray run` command first"
        )
    if teacher.embedder is not None:
        plain = teacher.embedder.model_copy(update={"whiten": None}).model_dump(mode="json")
        require_same_files(run.directory.path, run.config, {"teacher": {"embedder": plain}})

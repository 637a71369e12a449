"""The teacher: a ridge regression from released moments, which labels final images anew.

Its features come from a network trained on the last released population. Its weights W minimise
|F W - Y|^2 + c |W - P|^2 over the private records' features F and labels Y, of which F^T F and
F^T Y are released with noise; P gives the population's images the labels that they were made for.
So the noisier the release, the more labels stay as they were. Everything here is post-processing.
"""

from __future__ import annotations

import math

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray.components.embedders import label_features
from pe_ray.components.second_moments import GRAM_SHARE, Floats, Moments
from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.files.storage import Location, location, whole
from pe_ray.plugins import Images
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.population_files import read_population
from pe_ray.values import NoisySums

_LEAST = 1e-3  # mean eigenvalue, in records: noise may leave less, or none
_MOST_IMAGES = 60_000  # trained on, evenly spaced


def layout_of(config: Config) -> Moments:
    """How the sums of this run's teacher lie in the release."""
    assert config.teacher is not None
    return Moments(num_features=config.teacher.features, num_labels=len(config.private.labels))


def fit_features(
    config: Config, folder: Location, population: Population
) -> label_features.LearntFeaturesOptions:
    """Train the feature network on `population` in one Ray task, unless that is done.

    Returns the options of the embedder that reads it.
    """
    assert config.teacher is not None
    file = folder / "features.npz"
    if file.exists():
        label_features.read(file)
    else:
        ray.get(ray.remote(num_cpus=1)(_fit).remote(config, str(file), population))
    return label_features.LearntFeaturesOptions(
        file=str(file), num_features=config.teacher.features
    )


def _fit(config: Config, file: str, population: Population) -> None:
    assert config.teacher is not None
    num = min(_MOST_IMAGES, population.layout.num_samples)
    ids = np.arange(num, dtype=np.int64) * population.layout.num_samples // num
    options = config.generator_at(population.iteration).options
    rows = read_population(population.directory, ids, options)
    arrays = label_features.fit(
        rows["image"],
        rows["label"],
        config.teacher.features,
        config.teacher.epochs,
        config.schedule.seed,
    )
    label_features.write(location(file), arrays)


def write_teacher(config: Config, folder: Location, sums: NoisySums) -> None:
    """Solve for the weights, unless that is done."""
    file = folder / "weights.npz"
    if not file.exists():
        gram, cross = layout_of(config).unpack(sums.sums)
        prior = np.zeros_like(cross)
        given = label_features.read(folder / "features.npz")["prior"]
        prior[:, : given.shape[1]] = given
        weights = ridge(gram, cross, sums.release.sigma, prior)
        label_features.write(file, {"weights": weights})


def ridge(gram: Floats, cross: Floats, sigma: float, prior: Floats) -> Floats:
    """Weights [num_features, num_labels] from noisy moments of noise `sigma`, drawn to `prior`.

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
    """Labels images: the largest component of W^T f."""

    def __init__(self, folder: Location, num_features: int) -> None:
        options = label_features.LearntFeaturesOptions(
            file=str(folder / "features.npz"), num_features=num_features
        )
        self._features = label_features.LearntFeatures(options)
        with np.load(whole(folder / "weights.npz"), allow_pickle=False) as stored:
            self._weights = stored["weights"]

    def labels(self, images: Images) -> NDArray[np.int32]:
        """Labels, int32 [n]."""
        scores = self._features.embed(images).astype(np.float64) @ self._weights
        return np.asarray(scores.argmax(axis=1).astype(np.int32))


def load(config: Config, folder: Location) -> Teacher | None:
    """The run's teacher; None where the run has none. InputError where it isn't finished."""
    if config.teacher is None:
        return None
    if not (folder / "weights.npz").exists():
        raise InputError(
            f"run: not finished, {folder} holds no weights; run the same `pe-ray run` command first"
        )
    return Teacher(folder, config.teacher.features)

"""Embedder that a run learns: features of a small network that tells the labels apart.

The network learns from public or released images. Its features are whitened on these images and
scaled to norm 1. Without whitening, most of a norm is what all images have in common.
What makes a label is not all that makes an image look right, so pixels may join the features.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray import plugins
from pe_ray.components.embedders import convnet
from pe_ray.components.embedders.pixels import Pixels, PixelsOptions
from pe_ray.components.embedders.whitening import fit_whitening, whiten
from pe_ray.errors import InputError
from pe_ray.files.array_files import read_arrays
from pe_ray.files.images import resize
from pe_ray.files.storage import Location, parse_location
from pe_ray.plugins import Images
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import DistanceMetric, ImageShape

KIND = "pe_ray.components.embedders.label_features:LearntFeatures"
_OWN_RIDGE = 1e-3  # of `prior`, relative to the features' mean square
FORMAT = 2
"""Version of the arrays; 1 held another network."""
_PIXELS = PixelsOptions(size=14, blur=1.0)


def fit(
    images: Images, labels: NDArray[np.int32], num_features: int, epochs: int, seed: int
) -> dict[str, NDArray[Any]]:
    """Train the network and its projection on one thread; return arrays, below 4 MB.

    Among them `prior`, float64 [num_features, largest label + 1]: the ridge regression weights that
    predict the images' own labels. The arrays are the same to the last bit for the same arguments
    and processor. Training holds about 22 KB an image.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of additions depends on their number
    try:
        network = convnet.train(images, labels, epochs, seed)
        made = convnet.activations(network, images)
    finally:
        torch.set_num_threads(threads)
    whitening = fit_whitening(made, num_features)
    features = whiten(made, **whitening)
    return {
        **{f"network.{name}": value.numpy() for name, value in network.state_dict().items()},
        **whitening,
        "shape": np.array(images.shape[1:], dtype=np.int64),
        "prior": _own_labels(features.astype(np.float64), labels),
        "format": np.array(FORMAT),
    }


def read(file: Location) -> dict[str, NDArray[Any]]:
    """Return the arrays that `fit` returned; InputError if another version wrote them.

    DamagedFileError where the file holds something else than was written.
    """
    arrays = read_arrays(file)
    if arrays.get("format") != FORMAT:
        raise InputError(
            f"{file}: of another version of pe_ray; finish and expand this run with that one"
        )
    return arrays


def _own_labels(features: NDArray[np.float64], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    num, size = features.shape
    gram = features.T @ features + _OWN_RIDGE * num / size * np.eye(size)
    return np.linalg.solve(gram, features.T @ np.eye(int(labels.max()) + 1)[labels])


class LabelFeaturesOptions(plugins.EmbedderOptions):
    """Options of `label_features`."""

    modules: ClassVar[tuple[str, ...]] = ("torch",)
    learnt: ClassVar[bool] = True

    features: int = Field(default=64, ge=2, le=512)
    """Numbers per image."""
    pixels: float = Field(default=0.0, ge=0, lt=1)
    """Share of the squared norm that `pixels` (14x14, blur 1) get, as 196 more numbers. With them a
    sample must also look like a record to get its vote."""
    num_images: int = Field(default=60_000, ge=100, le=1_000_000)
    """Random images of the generator to learn from, as many of each label; held by one worker."""
    size: int = Field(default=28, ge=4, le=256)
    """Larger images are brought to size x size first."""
    epochs: int = Field(default=2, ge=1)
    """Passes over them."""

    def dim(self, shape: ImageShape) -> int:
        return self.features + _num_pixels(self.pixels, shape)

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        return self.model_copy(
            update={"num_images": max(200, 2 * len(rehearsal.labels)), "epochs": 1}
        )

    def check_learning(
        self, *, num_labels: int, shape: ImageShape, metric: DistanceMetric, paid: bool
    ) -> None:
        if num_labels < 2:
            raise ValueError("embedder: label_features needs at least two private.labels")
        if min(shape.height, shape.width) < 4:
            raise ValueError("embedder: label_features needs images of at least 4x4")
        if paid:
            raise ValueError(
                "embedder: label_features draws many more images, but this generator's calls are "
                "paid for; name another embedder"
            )
        if metric == "inner_product":
            raise ValueError("votes.metric: l2 or cosine for the embedder label_features")


class LabelFeatures:
    """Features of a small network that tells apart the labels of the generator's random images.

    A run learns it before it reads a private record (pe_ray.synthetic.learnt_embedder), from public
    randomness alone, so at no cost in privacy. Votes then follow what makes a label. Only
    `embedder` may name it.
    """

    Options: ClassVar[type[plugins.EmbedderOptions]] = LabelFeaturesOptions

    def __init__(self, options: LabelFeaturesOptions) -> None:
        raise InputError("embedder: label_features is learnt by a run, which alone can use it")


class LearntFeaturesOptions(plugins.EmbedderOptions):
    """Options of LearntFeatures."""

    learnt: ClassVar[bool] = True

    file: str
    """.npz file of the arrays that `fit` returns."""
    num_features: int
    pixels: float = 0.0

    def dim(self, shape: ImageShape) -> int:
        return self.num_features + _num_pixels(self.pixels, shape)


def _num_pixels(share: float, shape: ImageShape) -> int:
    return _PIXELS.dim(shape) if share else 0


class LearntFeatures:
    """A learnt network: images, resized to those trained on, to features of norm 1.

    With pixels: (sqrt(1 - s) features, sqrt(s) pixels) for their share s, so squared distances are
    the weighted mean of both.
    """

    Options: ClassVar[type[plugins.EmbedderOptions]] = LearntFeaturesOptions
    metric: DistanceMetric = "cosine"

    def __init__(self, options: LearntFeaturesOptions) -> None:
        import torch

        arrays = read(parse_location(options.file))
        weights = {
            name.removeprefix("network."): torch.from_numpy(value)
            for name, value in arrays.items()
            if name.startswith("network.")
        }
        height, width, channels = arrays["shape"].tolist()
        self._shape = ImageShape(height=height, width=width, channels=channels)
        self._projection, self._mean = arrays["projection"], arrays["mean"]
        self._network = convnet.make_network(channels, arrays["prior"].shape[1])
        self._network.load_state_dict(weights)
        self._network.eval()
        self._share, self._pixels = options.pixels, Pixels(_PIXELS)

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return features, float32 [n, dim], of norm 1; with pixels, an empty image's is less."""
        features = self._embed_labels(images)
        if not self._share:
            return features
        parts = (1 - self._share, features), (self._share, self._pixels.embed(images))
        return np.concatenate([np.float32(math.sqrt(s)) * part for s, part in parts], axis=1)

    def _embed_labels(self, images: Images) -> NDArray[np.float32]:
        if images.shape[1:3] != (self._shape.height, self._shape.width):
            images = np.stack([resize(image, self._shape) for image in images])
        return whiten(convnet.activations(self._network, images), self._mean, self._projection)

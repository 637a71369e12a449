"""Embedder: pool features of Inception v3, as clean-fid computes them for the FID."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.weights import loading_errors
from pe_ray.config.places import LocalFile
from pe_ray.errors import InputError
from pe_ray.files.storage import find_cache
from pe_ray.plugins import EmbedderOptions, Images
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.runtime.threads import map_in_threads
from pe_ray.values import DistanceMetric, ImageShape

if TYPE_CHECKING:
    from torch import Tensor

_DIM = 2048
_FILE = "inception-2015-12-05.pt"
_OPTION = "embedder.weights"


class InceptionOptions(EmbedderOptions):
    """Options of Inception."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "cleanfid")

    weights: LocalFile | None = None
    """Path of inception-2015-12-05.pt; default: downloaded once to ~/.cache/pe_ray/weights. The
    file is a TorchScript archive, which is a program: use one whose source you trust."""

    def dim(self, shape: ImageShape) -> int:
        return _DIM

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        from pe_ray.components.embedders.tiny_networks import save_inception

        file = save_inception(rehearsal.make_folder("inception"))
        return self.model_copy(update={"weights": str(file)})


class Inception:
    """Pool features of Inception v3, prepared as clean-fid's "clean" mode (Parmar et al. 2022).

    The network is NVIDIA's TorchScript translation of the 2015 TensorFlow graph that defines the
    FID, in float32.
    """

    Options: ClassVar[type[EmbedderOptions]] = InceptionOptions
    metric: DistanceMetric = "l2"

    def __init__(self, options: InceptionOptions) -> None:
        import torch

        from pe_ray.components.inference import pick_device

        self._device = pick_device()
        file = _find_weights(options.weights)
        with loading_errors(_OPTION, file):
            self._layers = torch.jit.load(str(file), map_location=self._device).eval().layers
            # A network that doesn't fit fails here, before any record is read.
            self.embed(np.zeros((1, 8, 8, 3), dtype=np.uint8))

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return features, float32 [n, 2048], of grey (repeated to RGB) or RGB images."""
        from pe_ray.components.inference import embed_in_chunks

        return embed_in_chunks(self._features, images, _DIM)

    def _features(self, images: Images) -> Tensor:
        import torch
        from cleanfid.resize import build_resizer

        shape = (*images.shape[:3], 3)
        resized = np.stack(
            map_in_threads(build_resizer("clean"), [*np.broadcast_to(images, shape)])
        )
        pixels = torch.from_numpy(resized).to(self._device).permute(0, 3, 1, 2).contiguous()
        # Unoptimised: the profiling executor changes a network's rounding after its first calls.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            features: Tensor = self._layers((pixels - 128) / 128)
        return features.reshape(len(images), -1)


def _find_weights(given: str | None) -> Path:
    """Return the given file, or clean-fid's, which is downloaded where this user lacks it."""
    import torch
    from cleanfid.downloads_helper import inception_url

    if given is not None:
        if not Path(given).is_file():
            raise InputError(f"{_OPTION}: {given} is not a file; get {inception_url}")
        return Path(given)
    file = find_cache() / "pe_ray" / "weights" / _FILE
    if not file.is_file():
        try:  # it is renamed once complete: several workers may come here at once, or be killed
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(inception_url, str(file), progress=False)
        except OSError as error:
            raise InputError(
                f"{_OPTION}: {inception_url} can't be downloaded from here; get the file and give "
                "its path as `weights`"
            ) from error
    return file

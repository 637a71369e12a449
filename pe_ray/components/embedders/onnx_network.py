"""Embedder: any network that was exported to ONNX."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray.components.weights import loading_errors
from pe_ray.config.extras import require_extras
from pe_ray.config.places import LocalFile
from pe_ray.errors import InputError
from pe_ray.files.images import resize
from pe_ray.plugins import EmbedderOptions, Images
from pe_ray.runtime.threads import count_threads
from pe_ray.values import DistanceMetric, ImageShape

_CHUNK = 32  # images of one call, where the network takes any number
_Mean = Annotated[float, Field(ge=0, le=1)]
_Spread = Annotated[float, Field(gt=0)]


class OnnxOptions(EmbedderOptions):
    """Options of Onnx."""

    modules: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    file: LocalFile
    """The .onnx file, at the same path on every machine. Its input is float32
    [n, 3, size, size]."""
    size: int = Field(ge=1, le=1024)
    """Images are resized to size x size (bicubic)."""
    mean: tuple[_Mean, _Mean, _Mean] = (0.485, 0.456, 0.406)
    """Subtracted from RGB values in [0, 1]; default: ImageNet's."""
    std: tuple[_Spread, _Spread, _Spread] = (0.229, 0.224, 0.225)
    """What they are divided by then; default: ImageNet's."""
    output: str | None = None
    """Name of the output that is the embedding; default: the first."""

    def dim(self, shape: ImageShape) -> int:
        require_extras(self, "embedder")
        return Onnx(self).dim


class Onnx:
    """An output of a network that ONNX Runtime runs on the CPU, flattened."""

    Options: ClassVar[type[EmbedderOptions]] = OnnxOptions
    metric: DistanceMetric = "cosine"

    def __init__(self, options: OnnxOptions) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = count_threads()
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        with loading_errors("embedder.file", options.file):
            self._session: Any = onnxruntime.InferenceSession(
                options.file, settings, providers=["CPUExecutionProvider"]
            )
        self._input = self._session.get_inputs()[0]
        names = [output.name for output in self._session.get_outputs()]
        self._output = options.output or names[0]
        if self._output not in names:
            raise InputError(f"embedder.output: {options.file} has only {', '.join(names)}")
        fixed = self._input.shape[0]
        self._chunk = fixed if isinstance(fixed, int) else _CHUNK
        self._shape = ImageShape(height=options.size, width=options.size, channels=3)
        self._mean = np.array(options.mean, dtype=np.float32)
        self._std = np.array(options.std, dtype=np.float32)
        with loading_errors("embedder.file", options.file, "its first input"):
            blank = np.zeros((1, 3, options.size, options.size), dtype=np.float32)
            self.dim: int = self._run(blank).shape[1]

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return embeddings, float32 [n, dim], of grey (repeated to RGB) or RGB images."""
        embedded = np.empty((len(images), self.dim), dtype=np.float32)
        for start in range(0, len(images), self._chunk):
            chunk = images[start : start + self._chunk]
            colour = np.broadcast_to(chunk, (*chunk.shape[:3], 3))
            resized = np.stack([resize(np.ascontiguousarray(i), self._shape) for i in colour])
            scaled = resized.astype(np.float32) / np.float32(255)
            pixels: NDArray[np.float32] = (scaled - self._mean) / self._std
            embedded[start : start + len(chunk)] = self._run(pixels.transpose(0, 3, 1, 2))
        return embedded

    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network on one chunk, filled up to its full size: rounding depends on that."""
        filled = np.zeros((self._chunk, *pixels.shape[1:]), dtype=np.float32)
        filled[: len(pixels)] = pixels
        (found,) = self._session.run([self._output], {self._input.name: filled})
        rows: NDArray[np.float32] = found.reshape(self._chunk, -1)[: len(pixels)]
        return rows

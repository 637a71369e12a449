"""Embedders: vision networks that transformers loads, CLIP and DINOv2.

Caches know a network by the content of its folder, or by the commit of a hub name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.weights import Precision, load_network, loading_errors
from pe_ray.config.extras import require_extras
from pe_ray.config.places import PathText
from pe_ray.errors import InputError
from pe_ray.plugins import EmbedderOptions, Images
from pe_ray.plugins.rehearsal import Rehearsal
from pe_ray.values import DistanceMetric, ImageShape

_OPTION = "embedder.checkpoint"
_FILES = ["config.json", "preprocessor_config.json", "model*.safetensors", "model*.index.json"]


class CheckpointOptions(EmbedderOptions):
    """Options of the embedders that transformers loads."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    checkpoint: PathText
    """Folder, or id on the Hugging Face hub. Weights are read from safetensors only; code that
    comes with a checkpoint is never run."""
    revision: str = "main"
    """Branch, tag or commit of a hub id; only a commit can't change later."""
    precision: Precision = "fp32"
    """Of weights and activations; embeddings are float32 whatever it is."""

    model_types: ClassVar[tuple[str, ...]]
    dim_key: ClassVar[str]

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        from pe_ray.components.embedders.tiny_networks import save_vision_network

        folder = rehearsal.make_folder(self.model_types[0])
        save_vision_network(self.model_types[0], folder)
        return self.model_copy(update={"checkpoint": str(folder)})

    def dim(self, shape: ImageShape) -> int:
        return int(getattr(self.load_config(), self.dim_key))

    def load_config(self) -> Any:
        """Return transformers' configuration of the checkpoint."""
        require_extras(self, "embedder")
        from transformers import AutoConfig

        with loading_errors(_OPTION, self.checkpoint):
            config = AutoConfig.from_pretrained(
                self.fetch(_FILES[:1]), trust_remote_code=False, local_files_only=True
            )
        if config.model_type not in self.model_types:
            raise InputError(
                f"{_OPTION}: {self.checkpoint} holds a {config.model_type!r} model; give one of "
                f"{', '.join(self.model_types)}"
            )
        return config

    def fetch(self, patterns: list[str]) -> str:
        """Return the checkpoint's folder; of a hub id, with its files of these names."""
        if Path(self.checkpoint).is_dir():
            return self.checkpoint
        from huggingface_hub import snapshot_download

        with loading_errors(_OPTION, self.checkpoint):
            return str(
                snapshot_download(self.checkpoint, revision=self.revision, allow_patterns=patterns)
            )


class ClipOptions(CheckpointOptions):
    """Options of Clip."""

    model_types = ("clip", "clip_vision_model")
    dim_key = "projection_dim"


class Dinov2Options(CheckpointOptions):
    """Options of Dinov2."""

    model_types = ("dinov2",)
    dim_key = "hidden_size"


class _VisionNetwork:
    """A network with the preprocessing that its checkpoint states."""

    network: ClassVar[str]
    """Its class in transformers."""
    output: ClassVar[str]
    """Which of the network's outputs is the embedding."""

    def __init__(self, options: CheckpointOptions) -> None:
        import transformers

        from pe_ray.components.inference import DTYPES, pick_device

        self._device, self._dtype = pick_device(), DTYPES[options.precision]
        self._precision: Precision = options.precision
        config = options.load_config()
        self._dim = int(getattr(config, options.dim_key))
        if config.model_type == "clip":  # both towers; the projection's size is outside them
            config.vision_config.projection_dim = config.projection_dim
            config = config.vision_config
        transformers.logging.set_verbosity_error()  # the unused text tower is no news
        transformers.utils.logging.disable_progress_bar()
        with loading_errors(_OPTION, options.checkpoint):
            folder = options.fetch(_FILES)
            self._processor: Any = transformers.AutoImageProcessor.from_pretrained(
                folder, backend="pil", trust_remote_code=False, local_files_only=True
            )
            network = load_network(
                getattr(transformers, self.network),
                _OPTION,
                folder,
                config=config,
                dtype=self._dtype,
                use_safetensors=True,
                local_files_only=True,
            )
            self._network: Any = network.eval().to(self._device)
            # What doesn't fit together fails here, before any record is read.
            self.embed(np.zeros((1, 8, 8, 3), dtype=np.uint8))

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return embeddings, float32 [n, dim], of grey (repeated to RGB) or RGB images."""
        from pe_ray.components.inference import embed_in_chunks

        return embed_in_chunks(self._features, images, self._dim, self._precision)

    def _features(self, images: Images) -> Any:
        from PIL import Image

        pictures = [Image.fromarray(np.broadcast_to(i, (*i.shape[:2], 3)).copy()) for i in images]
        pixels = self._processor(pictures, return_tensors="pt")["pixel_values"]
        outputs = self._network(pixel_values=pixels.to(self._device, self._dtype))
        return getattr(outputs, self.output)


class Clip(_VisionNetwork):
    """Projected image features of CLIP (Radford et al. 2021), not normalised."""

    Options: ClassVar[type[EmbedderOptions]] = ClipOptions
    metric: DistanceMetric = "cosine"
    network = "CLIPVisionModelWithProjection"
    output = "image_embeds"


class Dinov2(_VisionNetwork):
    """CLS token of DINOv2 (Oquab et al. 2023) after the last layer norm."""

    Options: ClassVar[type[EmbedderOptions]] = Dinov2Options
    metric: DistanceMetric = "cosine"
    network = "Dinov2Model"
    output = "pooler_output"

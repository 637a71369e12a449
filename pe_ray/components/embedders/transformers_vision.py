"""Embedders: vision networks that transformers loads.

CLIP, SigLIP, DINOv2, DINOv3, RADIO, I-JEPA and others run through one class. Caches know a network
by the content of its folder, or by the commit of a hub name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.embedders.network_options import NetworkOptions
from pe_ray.components.weights import (
    fetch_checkpoint,
    load_network,
    loading_errors,
    read_weights,
)
from pe_ray.config.extras import require_extras
from pe_ray.config.places import LocalFile, PathText
from pe_ray.errors import InputError
from pe_ray.plugins import EmbedderOptions, Images
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import DistanceMetric, ImageShape

if TYPE_CHECKING:
    from torch import Tensor

_OPTION = "embedder.checkpoint"
_SETTINGS = ["config.json", "preprocessor_config.json"]
_WEIGHTS = ["model*.safetensors", "model*.index.json"]
_PROBE = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)


class TransformersOptions(NetworkOptions):
    """Options of Transformers."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")

    checkpoint: PathText
    """Folder, or id on the Hugging Face hub. Weights are read from safetensors only; code that
    comes with a checkpoint is never run."""
    revision: str = "main"
    """Branch, tag or commit of a hub id; only a commit can't change later."""
    weights: LocalFile | None = None
    """File of other weights for this checkpoint, .safetensors or .pth, from which no code is run;
    default: the checkpoint's."""

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        from pe_ray.components.embedders.tiny_networks import save_vision_network

        family = "clip" if self.pooling == "projected" else "dinov2"
        folder = save_vision_network(family, rehearsal.make_folder(family))
        changes = {"checkpoint": str(folder), "weights": None, "layer": self.layer and 1}
        return self.model_copy(update=changes | {"compile": False})

    def dim(self, shape: ImageShape) -> int:
        """Return the embedding's length, by a pass through the network without its weights."""
        require_extras(self, "embedder")
        import torch

        config, processor = self.load_config(), self.load_processor()
        with loading_errors(_OPTION, self.checkpoint), torch.device("meta"):
            network = self.find_class(config)(config).eval()
        with loading_errors(_OPTION, self.checkpoint), torch.inference_mode():
            pixels: dict[str, Any] = prepare(processor, _PROBE, torch.device("cpu"))
            for name, values in pixels.items():
                if values.is_floating_point():
                    pixels[name] = values.to("meta")
                elif name.endswith("mask"):  # SigLIP 2's; its values can't be asked for here
                    pixels[name] = None
            return int(self.pool(network, pixels).shape[1])

    def load_config(self) -> Any:
        """Return transformers' configuration of the checkpoint; of two towers, the image's."""
        from transformers import AutoConfig

        with loading_errors(_OPTION, self.checkpoint):
            config = AutoConfig.from_pretrained(
                self.fetch(_SETTINGS), trust_remote_code=False, local_files_only=True
            )
        tower = getattr(config, "vision_config", None)
        if tower is not None and hasattr(config, "projection_dim"):
            tower.projection_dim = config.projection_dim  # its size is stated outside the towers
        return config if tower is None else tower

    def load_processor(self) -> Any:
        """Return the checkpoint's preprocessing, as torchvision does it."""
        from transformers import AutoImageProcessor

        with loading_errors(_OPTION, self.checkpoint):
            return AutoImageProcessor.from_pretrained(
                self.fetch(_SETTINGS),
                backend="torchvision",
                trust_remote_code=False,
                local_files_only=True,
            )

    def find_class(self, config: Any) -> Any:
        """Return the class in transformers of the network that `config` describes."""
        import transformers

        name = type(config).__name__.removesuffix("Config") + "Model"
        network = getattr(transformers, name, None)
        if getattr(network, "main_input_name", None) != "pixel_values":
            raise InputError(
                f"{_OPTION}: {self.checkpoint} holds a {config.model_type!r} model, which reads no "
                "images; give one of a vision model, such as CLIP, SigLIP or DINOv2"
            )
        if self.pooling == "projected":
            network = getattr(transformers, f"{name}WithProjection", None)
            if network is None:
                raise self.refuse_pooling(config)
        return network

    def refuse_pooling(self, config: Any) -> InputError:
        """Return the error for a network that hasn't what `pooling` names."""
        return InputError(
            f"embedder.pooling: a {config.model_type!r} model gives nothing for "
            f"{self.pooling!r}; use another of pooler, cls, mean, projected"
        )

    def pool(self, network: Any, pixels: Mapping[str, Tensor]) -> Tensor:
        """Return the network's numbers for images, [n, dim], as `pooling` and `layer` say."""
        config = network.config
        wanted = {} if self.layer is None else {"output_hidden_states": True}
        outputs = network(**pixels, **wanted)
        if self.pooling == "projected":
            found = outputs.image_embeds
        elif self.pooling == "pooler":
            found = outputs.get("pooler_output", outputs.get("summary"))  # RADIO's name for it
        else:
            tokens = outputs.last_hidden_state
            if self.layer is not None:
                states = outputs.hidden_states  # the first is what the first block reads
                self.require_layer(self.checkpoint, len(states) - 1)
                tokens = states[self.layer]
            found = _summarize(tokens, pixels, config, self.pooling)
        if found is None:
            raise self.refuse_pooling(config)
        return found.flatten(1)  # type: ignore[no-any-return]

    def fetch(self, patterns: list[str]) -> str:
        """Return the checkpoint's folder; of a hub id, with its files of these names."""
        return fetch_checkpoint(_OPTION, self.checkpoint, self.revision, patterns)


def prepare(processor: Any, images: Images, device: Any) -> dict[str, Tensor]:
    """Return what a network of transformers reads of images, prepared on `device`.

    torch resizes with antialias, and rounds to whole levels. Most checkpoints were trained with
    Pillow's resizing, from which it differs by one level of 255 at most.
    """
    from pe_ray.components.inference import to_rgb

    channels_first: Any = "channels_first"
    made = processor(
        [*to_rgb(images, device)], input_data_format=channels_first, return_tensors="pt"
    )
    return dict(made)


def _summarize(
    tokens: Tensor, pixels: Mapping[str, Tensor], config: Any, pooling: str
) -> Tensor | None:
    """Return the class token, or the mean of all patches, of each image; None if it has none.

    tokens: [n, tokens, width], patches last, or feature maps [n, width, rows, columns].
    """
    if tokens.ndim == 4:
        return tokens.mean((2, 3)) if pooling == "mean" else None
    mask = pixels.get("pixel_attention_mask")
    if mask is not None:  # SigLIP 2 reads a list of patches, filled up
        weights = mask.to(tokens)[:, :, None]
        return (tokens * weights).sum(1) / weights.sum(1) if pooling == "mean" else None
    size = getattr(config, "patch_size", None)
    if size is None:  # where patches begin isn't known
        return None
    high, wide = (size, size) if isinstance(size, int) else size
    rows, columns = pixels["pixel_values"].shape[-2:]
    num_patches = (rows // high) * (columns // wide)
    if pooling == "mean":  # the class token and registers come before them
        return tokens[:, -num_patches:].mean(1)
    return tokens[:, 0] if tokens.shape[1] > num_patches else None


class Transformers:
    """Numbers of any vision network of transformers, with the preprocessing of its checkpoint."""

    Options: ClassVar[type[EmbedderOptions]] = TransformersOptions
    metric: DistanceMetric = "cosine"

    def __init__(self, options: TransformersOptions) -> None:
        import transformers

        from pe_ray.components.inference import DTYPES, pick_device

        self._options, self._dim = options, options.dim(ImageShape(height=8, width=8, channels=3))
        self._device, self._dtype = pick_device(), DTYPES[options.precision]
        config, self._processor = options.load_config(), options.load_processor()
        transformers.logging.set_verbosity_error()  # the unused text tower is no news
        transformers.utils.logging.disable_progress_bar()
        option = "embedder.weights" if options.weights else _OPTION
        source = options.weights or options.checkpoint
        with loading_errors(option, source):
            given: dict[str, Any] = {"config": config, "dtype": self._dtype}
            if options.weights:
                place = options.weights
                given["state_dict"] = read_weights(Path(place))
            else:
                place = options.fetch(_SETTINGS + _WEIGHTS)
                given |= {"use_safetensors": True, "local_files_only": True}
            network = load_network(options.find_class(config), option, place, **given)
            self._network: Any = network.eval().to(self._device)
            if options.compile:
                self._network.compile()
            # What doesn't fit together fails here, before any record is read.
            if not np.array_equal(self.embed(_PROBE), self.embed(_PROBE)):
                raise InputError(
                    f"{_OPTION}: {source} gives other numbers for the same image each time, as a "
                    "masked autoencoder does; give another checkpoint"
                )

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return embeddings, float32 [n, dim], of grey (repeated to RGB) or RGB images."""
        from pe_ray.components.inference import embed_in_chunks

        return embed_in_chunks(self._features, images, self._dim, self._options.precision)

    def _features(self, images: Images) -> Any:
        pixels = {
            name: values.to(self._device, self._dtype if values.is_floating_point() else None)
            for name, values in prepare(self._processor, images, self._device).items()
        }
        return self._options.pool(self._network, pixels)


class ClipOptions(TransformersOptions):
    """Options of Clip."""

    pooling: Literal["pooler", "cls", "mean", "projected"] = "projected"


class Clip(Transformers):
    """Projected image features of CLIP (Radford et al. 2021), not normalised.

    It is `transformers` with another default of `pooling`.
    """

    Options: ClassVar[type[EmbedderOptions]] = ClipOptions

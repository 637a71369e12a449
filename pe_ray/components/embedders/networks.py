"""Embedders that are pretrained networks: Inception as clean-fid runs it, CLIP, DINOv2.

A forward pass sees at most 32 images, on the GPU if torch sees one. The same images in the same
order give the same embeddings to the last bit on one kind of device; another batch, number of
threads or device changes them by rounding only (about 1e-6 of their size in fp32; tested).

A network is taken for unchangeable: what is cached and what a run is bound to is its name, so a
changed network needs another name.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.plugins import EmbedderOptions, Images
from pe_ray.values import DistanceMetric, ImageShape

_CHUNK = 32  # images of one forward pass: a GB or so of activations at 299x299


class _Network:
    """What all of them share: checks, chunks, device and exact arithmetic."""

    metric: DistanceMetric

    def __init__(self, dim: int) -> None:
        import torch

        self._dim = dim
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Embeddings, float32 [n, dim], of grey (repeated to RGB) or RGB images of any size."""
        if images.ndim != 4 or images.shape[3] not in (1, 3):
            raise TypeError(f"images must be [n, height, width, 1 or 3], not {images.shape}")
        import torch

        found = np.empty((len(images), self._dim), dtype=np.float32)
        with torch.inference_mode(), _exact():
            for start in range(0, len(images), _CHUNK):
                features = self._features(images[start : start + _CHUNK])
                found[start : start + _CHUNK] = features.float().cpu().numpy()
        return found

    def _features(self, images: Images) -> Any:
        """A tensor [n, dim] on the device, in the network's own precision."""
        raise NotImplementedError

    def _check(self, where: str) -> None:
        """Embed one black image: what doesn't fit together shows before any record is read."""
        try:
            self.embed(np.zeros((1, 8, 8, 3), dtype=np.uint8))
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{where} can't embed an image: {_line(error)}") from error


@contextmanager
def _exact() -> Iterator[None]:
    """No TF32 and no algorithm chosen by timing, whatever a generator set in this process."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    try:
        with cudnn:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class InceptionOptions(EmbedderOptions):
    """Options of Inception."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "cleanfid")

    weights: str | None = None
    """Path of inception-2015-12-05.pt; default: downloaded once to ~/.cache/pe_ray/weights. The
    file is a TorchScript archive, which is a program: use one whose source you trust."""

    def dim(self, shape: ImageShape) -> int:
        return 2048


class Inception(_Network):
    """Pool features of Inception v3, prepared as clean-fid's "clean" mode (Parmar et al. 2022).

    Each channel is resized to 299x299 in floats (bicubic, antialiased) and clipped to [0, 255];
    the network is NVIDIA's TorchScript translation of the 2015 TensorFlow graph that the FID was
    defined with. float32.
    """

    Options: ClassVar[type[EmbedderOptions]] = InceptionOptions
    metric: DistanceMetric = "l2"

    def __init__(self, options: InceptionOptions) -> None:
        import torch

        super().__init__(dim=2048)
        file = _inception_file(options.weights)
        try:
            network = torch.jit.load(str(file), map_location=self._device)
            self._layers = network.eval().layers
        except (RuntimeError, AttributeError, ValueError) as error:
            raise InputError(
                f"inception: weights: {file} is not the TorchScript network {_INCEPTION}"
            ) from error
        self._check(f"inception: weights: {file}")

    def _features(self, images: Images) -> Any:
        import torch

        pixels = torch.from_numpy(np.stack([_clean_resize(image) for image in images]))
        pixels = pixels.to(self._device).expand(-1, 3, -1, -1).contiguous()
        # Unoptimised: the profiling executor changes a network's rounding after its first calls.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self._layers((pixels - 128) / 128).reshape(len(images), -1)


_INCEPTION = "inception-2015-12-05.pt"


def _inception_file(weights: str | None) -> Path:
    """The file given, or clean-fid's, downloaded if this user has not got it yet."""
    from cleanfid.downloads_helper import check_download_inception, inception_url

    if weights is not None:
        if not Path(weights).is_file():
            raise InputError(f"inception: weights: {weights} is not a file; get {inception_url}")
        return Path(weights)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    file = Path(home) / "pe_ray" / "weights" / _INCEPTION
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        # Aside, then renamed: several workers may come here at once, or be killed here.
        with tempfile.TemporaryDirectory(dir=file.parent) as aside:
            try:
                check_download_inception(aside)
            except OSError as error:
                raise InputError(
                    f"inception: weights: {inception_url} can't be downloaded from here; "
                    "get the file and give its path as `weights`"
                ) from error
            (Path(aside) / _INCEPTION).replace(file)
    return file


def _clean_resize(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One image to float32 [c, 299, 299] in [0, 255]; c stays, as grey needs no second resize."""
    from PIL import Image

    planes = [Image.fromarray(plane) for plane in image.astype(np.float32).transpose(2, 0, 1)]
    resized = [np.asarray(p.resize((299, 299), Image.Resampling.BICUBIC)) for p in planes]
    return np.stack(resized).clip(0, 255)


class CheckpointOptions(EmbedderOptions):
    """Options of the embedders that transformers loads."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    checkpoint: str
    """Folder, or id on the Hugging Face hub. Weights are read from safetensors only; code that
    comes with a checkpoint is never run."""
    revision: str = "main"
    """Branch, tag or commit of a hub id; only a commit can't change later."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of weights and activations; embeddings are float32 whatever it is."""

    model_types: ClassVar[tuple[str, ...]]
    dim_key: ClassVar[str]
    default_dim: ClassVar[int]  # checkpoints leave out what transformers has as default

    def dim(self, shape: ImageShape) -> int:
        """From the checkpoint's config.json, fetched where the checkpoint is a hub id."""
        file = self.folder("config.json") / "config.json"
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            model_type = config["model_type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"checkpoint: {file} is not a transformers configuration") from error
        if model_type not in self.model_types:
            raise InputError(
                f"checkpoint: {self.checkpoint} holds a {model_type!r} model, not one of "
                f"{', '.join(self.model_types)}"
            )
        return int(config.get(self.dim_key, self.default_dim))

    def folder(self, *patterns: str) -> Path:
        """Where the checkpoint's files of these names are, fetched from the hub if need be."""
        if Path(self.checkpoint).is_dir():
            return Path(self.checkpoint)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        try:
            fetched = snapshot_download(
                self.checkpoint, revision=self.revision, allow_patterns=list(patterns)
            )
        except (OSError, HFValidationError) as error:
            raise InputError(
                f"checkpoint: {self.checkpoint} (revision {self.revision}) is neither a folder nor "
                "to be had from the Hugging Face hub; give the folder of a downloaded one"
            ) from error
        return Path(fetched)


class ClipOptions(CheckpointOptions):
    """Options of Clip."""

    model_types = ("clip", "clip_vision_model")
    dim_key = "projection_dim"
    default_dim = 512


class Dinov2Options(CheckpointOptions):
    """Options of Dinov2."""

    model_types = ("dinov2",)
    dim_key = "hidden_size"
    default_dim = 768


_FILES = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
)


class _Checkpoint(_Network):
    """A network of transformers, with the preprocessing that its checkpoint states."""

    def __init__(self, options: CheckpointOptions) -> None:
        import torch
        import transformers

        super().__init__(dim=options.dim(ImageShape(height=1, width=1, channels=3)))
        where = f"checkpoint: {options.checkpoint}"
        precisions = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        self._dtype = precisions[options.precision]
        folder = str(options.folder(*_FILES))
        transformers.logging.set_verbosity_error()  # the unused text tower is no news
        transformers.utils.logging.disable_progress_bar()
        try:
            self._processor: Any = transformers.AutoImageProcessor.from_pretrained(
                folder, backend="pil", trust_remote_code=False, local_files_only=True
            )
            model_class, config = self._model(folder)
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                dtype=self._dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{where} can't be loaded: {_line(error)}") from error
        if report["missing_keys"]:  # transformers would go on with random numbers
            missing = sorted(report["missing_keys"])
            raise InputError(f"{where} lacks {len(missing)} weights, the first is {missing[0]}")
        self._network = model.eval().to(self._device)
        self._check(where)

    def _model(self, folder: str) -> tuple[Any, Any]:
        """The class of transformers and the configuration to load it with."""
        raise NotImplementedError

    def _features(self, images: Images) -> Any:
        from PIL import Image

        pictures = [Image.fromarray(np.broadcast_to(i, (*i.shape[:2], 3)).copy()) for i in images]
        pixels = self._processor(pictures, return_tensors="pt")["pixel_values"]
        return self._output(self._network(pixel_values=pixels.to(self._device, self._dtype)))

    def _output(self, output: Any) -> Any:
        """The embedding [n, dim] in what the network returns."""
        raise NotImplementedError


class Clip(_Checkpoint):
    """Projected image features of CLIP (Radford et al. 2021), not normalised."""

    Options: ClassVar[type[EmbedderOptions]] = ClipOptions
    metric: DistanceMetric = "cosine"

    def _model(self, folder: str) -> tuple[Any, Any]:
        from transformers import AutoConfig, CLIPVisionModelWithProjection

        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type == "clip":  # both towers: the projection's size is stated outside
            config.vision_config.projection_dim = config.projection_dim
            config = config.vision_config
        return CLIPVisionModelWithProjection, config

    def _output(self, output: Any) -> Any:
        return output.image_embeds


class Dinov2(_Checkpoint):
    """CLS token of DINOv2 (Oquab et al. 2023) after the last layer norm."""

    Options: ClassVar[type[EmbedderOptions]] = Dinov2Options
    metric: DistanceMetric = "cosine"

    def _model(self, folder: str) -> tuple[Any, Any]:
        from transformers import AutoConfig, Dinov2Model

        return Dinov2Model, AutoConfig.from_pretrained(folder, local_files_only=True)

    def _output(self, output: Any) -> Any:
        return output.pooler_output


def _line(error: Exception) -> str:
    """The error's first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

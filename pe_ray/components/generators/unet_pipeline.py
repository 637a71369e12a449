"""Generator: diffusers' pixel pipelines, folders with unet/ (UNet2DModel) and scheduler/."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field

from pe_ray.components.generators.ddim import DdimSampler
from pe_ray.components.generators.pixel_diffusion import (
    Classes,
    DiffusionGenerator,
    DiffusionOptions,
)
from pe_ray.components.weights import Precision, load_network, loading_errors
from pe_ray.config.places import PathText
from pe_ray.errors import InputError
from pe_ray.plugins import GeneratorOptions
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import ImageShape

_OPTION = "generator.checkpoint"


class UNetOptions(DiffusionOptions):
    """Options of the generator for diffusers' UNet2DModel."""

    checkpoint: PathText
    """Folder of a diffusers DDPM or DDIM pipeline, with unet/ and scheduler/; the same on every
    machine. Its unet/config.json says what the images look like."""
    steps: int = Field(default=50, ge=1)
    """DDIM steps from pure noise to an image."""
    classes: Classes | None = None
    """The model's class that a random draw shows: label -> class numbers, one of them drawn,
    equally likely; or any (random). Default: the label's own position, where the model has as
    many classes as there are labels."""

    def load(self) -> DdimSampler:
        return UNetPipeline(self.checkpoint, self.steps, self.precision, compiled=self.compile)

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        import diffusers

        config = {name: v for name, v in _read_config(self.checkpoint).items() if name[0] != "_"}
        widths = [8] * len(config.get("down_block_types", (None,) * 4))
        tiny = {"block_out_channels": widths, "layers_per_block": 1, "norm_num_groups": 4}
        folder = rehearsal.make_folder("unet")
        network = diffusers.UNet2DModel(**{**config, **tiny, "attention_head_dim": 4})
        network.save_pretrained(folder / "unet")
        shutil.copytree(Path(self.checkpoint) / "scheduler", folder / "scheduler")
        return self.model_copy(update={"checkpoint": str(folder), "compile": False})

    @property
    def image_shape(self) -> ImageShape:
        config = _read_config(self.checkpoint)
        size = config["sample_size"]
        height, width = size if isinstance(size, list) else (size, size)
        return ImageShape(height=height, width=width, channels=config.get("in_channels", 3))

    @property
    def num_steps(self) -> int:
        return self.steps

    @property
    def num_classes(self) -> int | None:
        return _read_config(self.checkpoint).get("num_class_embeds")


@lru_cache(maxsize=16)
def _read_config(folder: str) -> dict[str, Any]:
    """Return unet/config.json. Without diffusers: plans need the image's shape and no torch."""
    with loading_errors(_OPTION, folder, "unet"):
        config: dict[str, Any] = json.loads((Path(folder) / "unet" / "config.json").read_bytes())
        fits = (
            config.get("_class_name") == "UNet2DModel"
            and config.get("sample_size") is not None
            and config.get("in_channels", 3) in (1, 3)
            and config.get("class_embed_type") is None
        )
    if not fits:
        raise InputError(
            f"{_OPTION}: {folder}: unet/config.json must be of a UNet2DModel with a sample_size "
            "([height, width]), 1 or 3 in_channels, and classes by number or none "
            "(no class_embed_type); give another pipeline"
        )
    return config


class UNetPipeline(DdimSampler):
    """A UNet2DModel with diffusers' DDIM sampler, in the noise schedule it came with."""

    def __init__(
        self, folder: str, num_steps: int, precision: Precision = "fp32", *, compiled: bool = False
    ) -> None:
        import diffusers

        has_classes = _read_config(folder).get("num_class_embeds") is not None
        self._scheduler = _load_scheduler(folder, num_steps)
        diffusers.utils.logging.set_verbosity_error()
        unet = load_network(
            diffusers.UNet2DModel,
            _OPTION,
            folder,
            "unet",
            refuse_unexpected=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
        )
        # Numbers on the host: indexing with a GPU's tensor would wait for it at every step.
        timesteps = self._scheduler.timesteps.tolist()
        super().__init__(
            unet, timesteps, has_classes=has_classes, precision=precision, compiled=compiled
        )

    def _add_noise(self, images: Any, noise: Any, step: int) -> Any:
        import torch

        return self._scheduler.add_noise(images, noise, torch.tensor([self._timesteps[step]]))

    def _step(self, x: Any, predicted: Any, step: int) -> Any:
        return self._scheduler.step(predicted, self._timesteps[step], x, return_dict=False)[0]


def _load_scheduler(folder: str, num_steps: int) -> Any:
    """Return a DDIM scheduler set to `num_steps`, configured as the pipeline's own."""
    import diffusers

    with loading_errors(_OPTION, folder, "scheduler"):
        config = diffusers.DDIMScheduler.load_config(
            folder, subfolder="scheduler", local_files_only=True
        )
        # Others (variance exploding, Karras sigmas) scale their noise in ways DDIM doesn't.
        if config["_class_name"] not in ("DDIMScheduler", "DDPMScheduler"):
            raise InputError(
                f"{_OPTION}: {folder} has a {config['_class_name']}; this generator samples with "
                "DDIM, so give a pipeline with a DDIMScheduler or DDPMScheduler"
            )
        scheduler = diffusers.DDIMScheduler.from_config(config)
    try:
        scheduler.set_timesteps(num_steps)
    except ValueError as error:
        raise InputError(f"generator.steps: {' '.join(str(error).split())}") from error
    return scheduler


class UNetGenerator(DiffusionGenerator):
    """Pipelines of diffusers' UNet2DModel as a generator."""

    Options: ClassVar[type[GeneratorOptions]] = UNetOptions

"""Diffusers' unconditional pipelines: a folder with unet/ (UNet2DModel) and scheduler/."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pe_ray.components.weights import Precision, refuse_mismatch
from pe_ray.errors import InputError
from pe_ray.values import ImageShape

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DModel


_OPTION = "generator.checkpoint"


@lru_cache(maxsize=16)
def read_json(folder: str, file: str) -> dict[str, Any]:
    """A configuration file of the pipeline in `folder`; InputError where it can't be read."""
    path = Path(folder) / file
    if not path.is_file():
        raise InputError(
            f"{_OPTION}: {path} is missing; give the folder of a diffusers DDPM or DDIM pipeline "
            "(with unet/ and scheduler/)"
        )
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{_OPTION}: {path} is damaged; get it again") from error


def unet_config(folder: str) -> dict[str, Any]:
    """unet/config.json, checked to be a UNet2DModel's."""
    config = read_json(folder, "unet/config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise InputError(
            f"{_OPTION}: {folder} holds a {config.get('_class_name')}, not a UNet2DModel"
        )
    return config


def image_shape(folder: str) -> ImageShape:
    """Shape of the images that the pipeline makes, from unet/config.json alone."""
    config = unet_config(folder)
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if not (isinstance(height, int) and isinstance(width, int)):
        raise InputError(
            f"{_OPTION}: {folder}/unet/config.json has no sample_size; write [height, width] there"
        )
    if channels not in (1, 3):
        raise InputError(
            f"{_OPTION}: {folder} makes images of {channels} channels; only 1 and 3 can be used"
        )
    return ImageShape(height=height, width=width, channels=channels)


class UNetPipeline:
    """A UNet2DModel with diffusers' DDIM sampler (eta 0) in the noise schedule it came with."""

    def __init__(
        self, folder: str, num_steps: int, precision: Precision = "fp32", *, compiled: bool = False
    ) -> None:
        from pe_ray.components.generators.on_device import OnDevice

        self._scheduler = _scheduler(folder, num_steps)
        # As numbers on the host: indexing with what lies on a GPU would wait for it, every step.
        self._timesteps = [int(timestep) for timestep in self._scheduler.timesteps]
        self._channels = image_shape(folder).channels
        self._has_classes = unet_config(folder).get("num_class_embeds") is not None
        self._network = OnDevice(_unet(folder), precision, compiled=compiled)

    def denoise(
        self, noise: Any, labels: Any = None, start_step: int = 0, start_images: Any = None
    ) -> Any:
        """As ImprovedDiffusion.denoise: images, float32 [n, channels, height, width]."""
        import torch

        from pe_ray.components.generators.on_device import like

        network, scheduler = self._network, self._scheduler
        timesteps = self._timesteps[start_step:]
        with network.running():
            x = network.floats(noise)
            classes = network.integers(labels) if self._has_classes else None
            if start_images is not None:
                first = torch.full((len(x),), timesteps[0])
                x = scheduler.add_noise(network.images(start_images), x, first)
            for timestep in timesteps:
                at = torch.full((len(x),), timestep, device=x.device)
                predicted = network(x, at, classes, return_dict=False)[0]
                # A learned variance comes after the noise; DDIM at eta 0 adds none.
                noise_part = predicted[:, : self._channels].float()
                x = scheduler.step(noise_part, timestep, x, return_dict=False)[0]
        return like(noise, x.clamp(-1, 1))


def _scheduler(folder: str, num_steps: int) -> DDIMScheduler:
    import diffusers

    config = read_json(folder, "scheduler/scheduler_config.json")
    name = config.get("_class_name")
    # Others (variance exploding, Karras sigmas) scale their noise in ways DDIM doesn't.
    if name not in ("DDIMScheduler", "DDPMScheduler"):
        raise InputError(
            f"{_OPTION}: {folder} has a {name}; the unet generator samples with DDIM, from the "
            "configuration of a DDIMScheduler or DDPMScheduler"
        )
    scheduler: DDIMScheduler = diffusers.DDIMScheduler.from_config(config)
    if num_steps > scheduler.config.num_train_timesteps:
        raise InputError(
            f"generator.steps: {num_steps} is more than the {scheduler.config.num_train_timesteps} "
            f"that {folder} was trained with"
        )
    scheduler.set_timesteps(num_steps)
    return scheduler


def _unet(folder: str) -> UNet2DModel:
    import diffusers

    config = unet_config(folder)
    if config.get("class_embed_type") is not None:
        raise InputError(
            f"{_OPTION}: {folder} takes classes as {config['class_embed_type']}; only class "
            "numbers (num_class_embeds) can be used"
        )
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    try:
        unet, loading = diffusers.UNet2DModel.from_pretrained(
            folder,
            subfolder="unet",
            local_files_only=True,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split()).removesuffix(".")
        raise InputError(
            f"{_OPTION}: {folder}/unet was not loaded: {reason} (code in a checkpoint is never run)"
        ) from error
    finally:
        diffusers.utils.logging.set_verbosity(verbosity)
    refuse_mismatch(
        f"{_OPTION}: {folder}/unet",
        missing=sorted(loading["missing_keys"]),
        unexpected=sorted(loading["unexpected_keys"]),
        misshapen=[
            f"{name} {list(a)} instead of {list(b)}" for name, a, b in loading["mismatched_keys"]
        ],
    )
    made: UNet2DModel = unet
    return made

"""Generator: checkpoints of improved diffusion (Nichol and Dhariwal 2021), sampled with DDIM."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pe_ray.components.generators.ddim import DdimSampler, compute_signal, space_steps
from pe_ray.components.generators.pixel_diffusion import (
    Classes,
    DiffusionGenerator,
    DiffusionOptions,
)
from pe_ray.components.weights import loading_errors, read_weights
from pe_ray.config.places import LocalFile
from pe_ray.plugins import GeneratorOptions
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import ImageShape

_IMAGENET_CLASSES = 1000  # improved diffusion has no other class-conditional models


def _split(value: object) -> object:
    """Split "16,8", as improved diffusion's flags are written."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class ImprovedDiffusionOptions(DiffusionOptions):
    """Options of ImprovedDiffusion. Those that describe the checkpoint are its training flags.

    They have no defaults: a wrong value of some would load and make noise.
    """

    checkpoint: LocalFile
    """Model file as improved diffusion publishes it (.pt), or its tensors as .safetensors."""
    image_size: Literal[32, 64, 256]
    """Height and width, in pixels."""
    num_channels: int = Field(ge=32, multiple_of=32)
    num_res_blocks: int = Field(ge=1)
    attention_resolutions: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_split)
    ]
    """Sides, in pixels, of the levels with attention: [16, 8] or "16,8"."""
    num_heads: int = Field(ge=1)
    class_cond: bool
    learn_sigma: bool
    diffusion_steps: int = Field(ge=1)
    noise_schedule: Literal["cosine", "linear"]
    timestep_respacing: Annotated[str, BeforeValidator(str)]
    """Which steps sampling uses: "100" evenly spaced, "ddim25" at a whole stride, "10,20" by
    sections, or "" for all."""
    classes: Classes = "random"
    """Which of ImageNet's 1,000 classes a random draw shows, equally likely: any (random, as in
    the paper's experiments), or label -> class numbers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_channels % self.num_heads:
            raise ValueError("num_heads: must divide num_channels")
        try:
            space_steps(self.diffusion_steps, self.timestep_respacing)
        except ValueError as error:
            raise ValueError(f"timestep_respacing: {error}") from None
        return self

    def load(self) -> DdimSampler:
        return ImprovedDiffusion(**self.model_dump())

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        import torch

        file = rehearsal.make_folder("improved") / "model.pt"
        tiny = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "num_heads": 4}
        changes = {"checkpoint": str(file), "attention_resolutions": (8,), "compile": False}
        small = self.model_copy(update={**tiny, **changes})
        torch.manual_seed(0)
        torch.save(make_unet(small).state_dict(), file)
        return small

    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(height=self.image_size, width=self.image_size, channels=3)

    @property
    def num_steps(self) -> int:
        return len(space_steps(self.diffusion_steps, self.timestep_respacing))

    @property
    def num_classes(self) -> int | None:
        return _IMAGENET_CLASSES if self.class_cond else None


def make_unet(options: ImprovedDiffusionOptions) -> Any:
    """Return the network that the options describe, with random weights."""
    from pe_ray.components.generators.improved_unet import ImprovedUNet

    return ImprovedUNet(
        image_size=options.image_size,
        num_channels=options.num_channels,
        num_res_blocks=options.num_res_blocks,
        attention_resolutions=options.attention_resolutions,
        num_heads=options.num_heads,
        num_classes=options.num_classes,
        learn_sigma=options.learn_sigma,
    )


class ImprovedDiffusion(DdimSampler):
    """An improved-diffusion checkpoint with its DDIM sampler.

    Takes the fields of ImprovedDiffusionOptions as keyword arguments. Raises InputError if the
    checkpoint can't be used.
    """

    def __init__(self, *, checkpoint: str | Path, **options: Any) -> None:
        import torch

        flags = ImprovedDiffusionOptions(checkpoint=str(checkpoint), **options)
        with torch.device("meta"):
            unet = make_unet(flags)
        with loading_errors("generator.checkpoint", checkpoint):
            unet.load_state_dict(read_weights(Path(checkpoint)), assign=True)
        timesteps = space_steps(flags.diffusion_steps, flags.timestep_respacing)[::-1]
        signal = compute_signal(flags.noise_schedule, flags.diffusion_steps)[timesteps]
        self._signal = [*signal.tolist(), 1.0]
        super().__init__(
            unet,
            timesteps,
            has_classes=flags.class_cond,
            precision=flags.precision,
            compiled=flags.compile,
        )

    def _add_noise(self, images: Any, noise: Any, step: int) -> Any:
        a = self._signal[step]
        return math.sqrt(a) * images + math.sqrt(1 - a) * noise

    def _step(self, x: Any, predicted: Any, step: int) -> Any:
        # Equation 12: from the clipped x_0 and the noise that this leaves in x.
        a, before = self._signal[step], self._signal[step + 1]
        x_0 = ((x - math.sqrt(1 - a) * predicted) / math.sqrt(a)).clamp(-1, 1)
        left = (x - math.sqrt(a) * x_0) / math.sqrt(1 - a)
        return math.sqrt(before) * x_0 + math.sqrt(1 - before) * left


class ImprovedDiffusionGenerator(DiffusionGenerator):
    """Improved diffusion's checkpoints as a generator."""

    Options: ClassVar[type[GeneratorOptions]] = ImprovedDiffusionOptions

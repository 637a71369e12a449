"""Generator: checkpoints of improved diffusion (Nichol and Dhariwal 2021), sampled with DDIM."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pe_ray.components.generators.ddim import compute_signal, space_steps
from pe_ray.components.generators.pixel_diffusion import (
    Classes,
    DiffusionGenerator,
    DiffusionOptions,
    choose_classes,
)
from pe_ray.components.weights import loading_errors, read_weights
from pe_ray.files.storage import expand_home
from pe_ray.plugins import GeneratorOptions
from pe_ray.values import ImageShape

_IMAGENET_CLASSES = 1000  # improved diffusion has no other class-conditional models


def _split(value: object) -> object:
    """Split "16,8", as improved diffusion's flags are written."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class ImprovedDiffusionOptions(DiffusionOptions):
    """Options of ImprovedDiffusion. Those that describe the checkpoint are its training flags.

    They have no defaults: a wrong value of some would load and make noise.
    """

    checkpoint: str
    """Model file as improved diffusion publishes it (.pt), or its tensors as .safetensors."""
    image_size: Literal[32, 64, 256]
    """Height and width, in pixels."""
    num_channels: int = Field(ge=32, multiple_of=32)
    num_res_blocks: int = Field(ge=1)
    attention_resolutions: Annotated[tuple[int, ...], BeforeValidator(_split)]
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
        if not self.class_cond and self.classes != "random":
            raise ValueError("classes: the model has none (class_cond: false); leave it out")
        try:
            space_steps(self.diffusion_steps, self.timestep_respacing)
        except ValueError as error:
            raise ValueError(f"timestep_respacing: {error}") from None
        return self

    @property
    def local_paths(self) -> Mapping[str, str]:
        return {"checkpoint": self.checkpoint}

    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(height=self.image_size, width=self.image_size, channels=3)

    @property
    def num_steps(self) -> int:
        return len(space_steps(self.diffusion_steps, self.timestep_respacing))

    @property
    def num_classes(self) -> int | None:
        return _IMAGENET_CLASSES if self.class_cond else None


class ImprovedDiffusion:
    """An improved-diffusion checkpoint with its DDIM sampler, on `inference.pick_device()`.

    Takes the fields of ImprovedDiffusionOptions as keyword arguments. Raises InputError if the
    checkpoint can't be used.
    """

    def __init__(self, *, checkpoint: str | Path, **options: Any) -> None:
        import torch

        from pe_ray.components.generators.improved_unet import ImprovedUNet
        from pe_ray.components.inference import OnDevice

        flags = ImprovedDiffusionOptions(checkpoint=str(checkpoint), **options)
        with torch.device("meta"):
            unet = ImprovedUNet(
                image_size=flags.image_size,
                num_channels=flags.num_channels,
                num_res_blocks=flags.num_res_blocks,
                attention_resolutions=flags.attention_resolutions,
                num_heads=flags.num_heads,
                num_classes=flags.num_classes,
                learn_sigma=flags.learn_sigma,
            )
        with loading_errors("generator.checkpoint", checkpoint):
            unet.load_state_dict(read_weights(expand_home(checkpoint)), assign=True)
        self._network = OnDevice(unet, flags.precision, compiled=flags.compile)
        self._has_classes = flags.class_cond
        self._timesteps = space_steps(flags.diffusion_steps, flags.timestep_respacing)
        signal = compute_signal(flags.noise_schedule, flags.diffusion_steps)
        self._signal = [float(signal[step]) for step in self._timesteps]

    def denoise(
        self, noise: Any, labels: Any = None, start_step: int = 0, start_images: Any = None
    ) -> Any:
        """Return images in [-1, 1] (see Sampler.denoise): a tensor for a tensor, else an array.

        noise: [n, 3, side, side], array or tensor as all arguments.
        """
        import torch

        from pe_ray.components.inference import exact_arithmetic, like

        network, signal = self._network, self._signal
        steps = range(len(signal) - 1 - start_step, -1, -1)
        with exact_arithmetic():
            x = network.floats(noise)
            classes = network.integers(labels) if self._has_classes else None
            if start_images is not None:
                a = signal[steps[0]]
                x = math.sqrt(a) * network.images(start_images) + math.sqrt(1 - a) * x
            for step in steps:
                timesteps = torch.full((len(x),), self._timesteps[step], device=x.device)
                predicted = network(x, timesteps, classes)[:, :3].float()
                # DDIM, equation 12: from the clipped x_0 and the noise that this leaves in x.
                a, before = signal[step], signal[step - 1] if step else 1.0
                x_0 = ((x - math.sqrt(1 - a) * predicted) / math.sqrt(a)).clamp(-1, 1)
                left = (x - math.sqrt(a) * x_0) / math.sqrt(1 - a)
                x = math.sqrt(before) * x_0 + math.sqrt(1 - before) * left
        return like(noise, x)  # outside: a tensor made inside could not be changed


class ImprovedDiffusionGenerator(DiffusionGenerator):
    """Improved diffusion's checkpoints as a generator."""

    Options: ClassVar[type[GeneratorOptions]] = ImprovedDiffusionOptions

    def __init__(self, options: ImprovedDiffusionOptions, label_names: Sequence[str]) -> None:
        choices = choose_classes(options.classes, options.num_classes, label_names)
        super().__init__(options, ImprovedDiffusion(**options.model_dump()), choices)

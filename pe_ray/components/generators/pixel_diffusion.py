"""Pixel diffusion models as generators: improved diffusion's UNets and diffusers' UNet2DModel.

Both sample with DDIM (Song et al. 2021, eta 0): an image is a function of its noise and class, and
a row's noise comes from its own seed. A network's sums depend on the batch it runs in, so a row in
another batch, or on another number of threads or kind of device, differs by rounding: tested on a
CPU in fp32, by 1e-4 in [-1, 1] and so by one of 255 levels at most. (With networks of random
weights, single pixels can differ by more where sampling starts at the very last training step:
x_0 is there what two nearly equal numbers leave, divided by 1e-5.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from pe_ray.components.generators import unet_pipeline
from pe_ray.components.generators.ddim import respaced, signal_shares
from pe_ray.components.weights import Precision, load_into, read_weights
from pe_ray.errors import InputError
from pe_ray.plugins import GeneratorOptions, Rows
from pe_ray.plugins.seeds import Seeds, normals
from pe_ray.values import ImageShape

Classes = Literal["random"] | dict[str, tuple[int, ...]]

_IMAGENET_CLASSES = 1000  # improved diffusion has no other class-conditional models


class DiffusionOptions(GeneratorOptions):
    """What the options of both generators share."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "diffusers", "safetensors")

    precision: Precision = "fp32"
    """Of weights and activations; the sampler's own arithmetic is in float32 whatever it is."""
    compile: bool = False
    """Compile the network: a minute or more at the start of each worker, faster calls after."""

    @property
    def num_steps(self) -> int:
        """Sampling steps from pure noise to an image."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int | None:
        """Classes that the model knows; None where it is not class-conditional."""
        raise NotImplementedError

    @property
    def columns(self) -> Mapping[str, tuple[str, int]]:
        """class_id: the model's class of a row, which its variations keep; if it has classes."""
        return {"class_id": ("int32", 1)} if self.num_classes else {}

    def check_degree(self, degree: float) -> None:
        if degree not in range(self.num_steps):
            raise ValueError(
                f"degree {degree:g}: is the number of sampling steps skipped; give a whole number "
                f"from 0 to {self.num_steps - 1}"
            )


def _numbers(value: object) -> object:
    """ "16,8", as improved diffusion's flags are written, as a list of numbers."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class ImprovedDiffusionOptions(DiffusionOptions):
    """Options of ImprovedDiffusion. Those that describe the checkpoint are its training flags.

    They have no defaults: some, taken wrongly, would load and make noise.
    """

    checkpoint: str
    """Model file as improved diffusion publishes it (.pt), or its tensors as .safetensors."""
    image_size: Literal[32, 64, 256]
    """Height and width, in pixels."""
    num_channels: int = Field(ge=32, multiple_of=32)
    num_res_blocks: int = Field(ge=1)
    attention_resolutions: Annotated[tuple[int, ...], BeforeValidator(_numbers)]
    """Sides, in pixels, of the levels with attention: [16, 8] or "16,8"."""
    num_heads: int = Field(ge=1)
    class_cond: bool
    learn_sigma: bool
    diffusion_steps: int = Field(ge=1)
    noise_schedule: Literal["cosine", "linear"]
    timestep_respacing: Annotated[str, BeforeValidator(str)]
    """Which steps sampling uses: "100" evenly spaced, "ddim25" at a whole stride, "10,20" by
    sections, or "" for all."""
    rescale_timesteps: bool = False
    """The training flag of that name; published checkpoints have False."""
    classes: Classes = "random"
    """Which of ImageNet's 1,000 classes a random draw shows, equally likely: any (random, as in
    the paper's experiments), or label -> class numbers."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_channels % self.num_heads:
            raise ValueError("num_heads: must divide num_channels")
        if not self.class_cond and self.classes != "random":
            raise ValueError("classes: the model has none (class_cond: false); leave it out")
        try:
            respaced(self.diffusion_steps, self.timestep_respacing)
        except ValueError as error:
            raise ValueError(f"timestep_respacing: {error}") from None
        return self

    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(height=self.image_size, width=self.image_size, channels=3)

    @property
    def num_steps(self) -> int:
        return len(respaced(self.diffusion_steps, self.timestep_respacing))

    @property
    def num_classes(self) -> int | None:
        return _IMAGENET_CLASSES if self.class_cond else None


class ImprovedDiffusion:
    """An improved-diffusion checkpoint (Nichol and Dhariwal 2021) with its DDIM sampler.

    Takes the fields of ImprovedDiffusionOptions as keyword arguments; runs on the GPU if torch
    sees one, else on the CPU. Raises InputError where the checkpoint can't be used.
    """

    def __init__(self, *, checkpoint: str | Path, **options: Any) -> None:
        import torch

        from pe_ray.components.generators.improved_unet import ImprovedUNet
        from pe_ray.components.generators.on_device import OnDevice

        made = ImprovedDiffusionOptions(checkpoint=str(checkpoint), **options)
        with torch.device("meta"):
            unet = ImprovedUNet(
                image_size=made.image_size,
                num_channels=made.num_channels,
                num_res_blocks=made.num_res_blocks,
                attention_resolutions=made.attention_resolutions,
                num_heads=made.num_heads,
                num_classes=made.num_classes,
                learn_sigma=made.learn_sigma,
            )
        option = "generator.checkpoint"
        load_into(unet, read_weights(made.checkpoint, option), f"{option}: {made.checkpoint}")
        self._network = OnDevice(unet, made.precision, compiled=made.compile)
        self._has_classes = made.class_cond
        kept = respaced(made.diffusion_steps, made.timestep_respacing)
        scale = 1000 / made.diffusion_steps if made.rescale_timesteps else 1
        self._timesteps = [step * scale for step in kept]
        signal = signal_shares(made.noise_schedule, made.diffusion_steps)
        self._signal = [float(signal[step]) for step in kept]

    def denoise(
        self, noise: Any, labels: Any = None, start_step: int = 0, start_images: Any = None
    ) -> Any:
        """Images, float32 [n, 3, side, side] in [-1, 1]: a tensor if `noise` is one, else an array.

        noise: [n, 3, side, side], standard normal. labels: class numbers [n], if the model has
        classes. start_images: uint8 [n, side, side, 3], or float [n, 3, side, side] in [-1, 1];
        with them, sampling skips `start_step` steps and starts from the images with as much noise
        as the first step not skipped expects. None: from pure noise. All as arrays or tensors.
        """
        import torch

        from pe_ray.components.generators.on_device import like

        network, signal = self._network, self._signal
        steps = range(len(signal) - 1 - start_step, -1, -1)
        with network.running():
            x = network.floats(noise)
            classes = network.integers(labels) if self._has_classes else None
            if start_images is not None:
                a = signal[steps[0]]
                x = math.sqrt(a) * network.images(start_images) + math.sqrt(1 - a) * x
            for step in steps:
                timesteps = torch.full((len(x),), self._timesteps[step], device=x.device)
                predicted = network(x, timesteps, classes)[:, :3].float()
                # DDIM, equation 12, from the clipped x_0 and the noise that this leaves in x.
                a, before = signal[step], signal[step - 1] if step else 1.0
                x_0 = ((x - math.sqrt(1 - a) * predicted) / math.sqrt(a)).clamp(-1, 1)
                left = (x - math.sqrt(a) * x_0) / math.sqrt(1 - a)
                x = math.sqrt(before) * x_0 + math.sqrt(1 - before) * left
        return like(noise, x)


class UNetOptions(DiffusionOptions):
    """Options of the generator for diffusers' UNet2DModel."""

    checkpoint: str
    """Folder of a diffusers DDPM or DDIM pipeline, with unet/ and scheduler/; the same on every
    machine. Its unet/config.json says what the images look like."""
    steps: int = Field(default=50, ge=1)
    """DDIM steps from pure noise to an image."""
    classes: Classes | None = None
    """The model's class that a random draw shows: label -> class numbers, one of them drawn,
    equally likely; or any (random). Default: the label's own position, where the model has as
    many classes as there are labels."""

    @property
    def image_shape(self) -> ImageShape:
        return unet_pipeline.image_shape(self.checkpoint)

    @property
    def num_steps(self) -> int:
        return self.steps

    @property
    def num_classes(self) -> int | None:
        return unet_pipeline.unet_config(self.checkpoint).get("num_class_embeds")


class Sampler(Protocol):
    """ImprovedDiffusion or UNetPipeline."""

    def denoise(
        self, noise: Any, labels: Any = None, start_step: int = 0, start_images: Any = None
    ) -> Any: ...


class _DiffusionGenerator:
    """RANDOM_API: noise to image. VARIATION_API: image, with noise, to image, in fewer steps.

    `degree` is how many of the sampling steps a variation skips: 0 starts from as good as pure
    noise, the last but one from the image with hardly any (Lin et al. 2024, section 4).
    """

    def __init__(
        self, options: DiffusionOptions, sampler: Sampler, choices: list[NDArray[np.int32]] | None
    ) -> None:
        self._options = options
        self._sampler = sampler
        self._choices = choices

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """From each row's own noise; with a class drawn from those of its label."""
        classes = None
        if self._choices is not None:
            drawn = zip(labels, seeds, strict=True)
            picked = [
                self._choices[label][seed % len(self._choices[label])] for label, seed in drawn
            ]
            classes = np.array(picked, dtype=np.int32)
        return self._rows(self._sampler.denoise(self._noise(seeds), classes), classes)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """From each row's image and own noise, skipping `degree` steps; the class is kept."""
        self._options.check_degree(degree)
        classes = rows["class_id"] if self._choices is not None else None
        noise = self._noise(seeds)
        return self._rows(
            self._sampler.denoise(noise, classes, int(degree), rows["image"]), classes
        )

    def _noise(self, seeds: Seeds) -> NDArray[np.float32]:
        shape = self._options.image_shape
        flat = normals(seeds, shape.num_bytes)
        return flat.reshape(len(seeds), shape.channels, shape.height, shape.width)

    def _rows(self, made: NDArray[np.float32], classes: NDArray[np.int32] | None) -> Rows:
        if not np.isfinite(made).all():
            raise InputError(
                f"generator.precision: {self._options.precision} overflowed into pixels that are "
                "no numbers; use bf16 or fp32"
            )
        # Rounded to the nearest level: cutting off would darken every generation by half of one.
        image = np.rint((made + 1) * np.float32(127.5)).astype(np.uint8).transpose(0, 2, 3, 1)
        own = {} if classes is None else {"class_id": classes}
        return {"image": np.ascontiguousarray(image), **own}


def _choices(
    options: DiffusionOptions, classes: Classes | None, label_names: Sequence[str]
) -> list[NDArray[np.int32]] | None:
    """The classes that each label's draws pick from, equally likely; None for a model without."""
    num = options.num_classes
    if num is None:
        if isinstance(classes, dict):
            raise InputError("generator.classes: the model has none; leave it out")
        return None
    if classes == "random":
        return [np.arange(num, dtype=np.int32)] * len(label_names)
    if classes is None:
        if num != len(label_names):
            raise InputError(
                f"generator.classes: the model has {num} classes for {len(label_names)} labels; "
                "write label: [class numbers] for each label, or random"
            )
        classes = {name: (position,) for position, name in enumerate(label_names)}
    unknown = sorted(set(classes) - set(label_names))
    if unknown:
        raise InputError(f"generator.classes: {unknown[0]!r} is not a label")
    for name in label_names:
        if not classes.get(name):
            raise InputError(f"generator.classes: give label {name!r} at least one class number")
        for class_id in classes[name]:
            if not 0 <= class_id < num:
                raise InputError(
                    f"generator.classes: {name!r}: the model's classes are 0 to {num - 1}, "
                    f"not {class_id}"
                )
    return [np.array(classes[name], dtype=np.int32) for name in label_names]


class ImprovedDiffusionGenerator(_DiffusionGenerator):
    """Improved diffusion's checkpoints as a generator."""

    Options: ClassVar[type[GeneratorOptions]] = ImprovedDiffusionOptions

    def __init__(self, options: ImprovedDiffusionOptions, label_names: Sequence[str]) -> None:
        choices = _choices(options, options.classes, label_names)
        super().__init__(options, ImprovedDiffusion(**options.model_dump()), choices)


class UNetGenerator(_DiffusionGenerator):
    """Pipelines of diffusers' UNet2DModel as a generator."""

    Options: ClassVar[type[GeneratorOptions]] = UNetOptions

    def __init__(self, options: UNetOptions, label_names: Sequence[str]) -> None:
        choices = _choices(options, options.classes, label_names)
        sampler = unet_pipeline.UNetPipeline(
            options.checkpoint, options.steps, options.precision, compiled=options.compile
        )
        super().__init__(options, sampler, choices)

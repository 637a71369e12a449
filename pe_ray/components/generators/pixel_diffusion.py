"""What generators on pixel diffusion models share; each model brings its sampler.

Sampling is DDIM with eta 0 (Song et al. 2021): an image is a function of its noise and class, and a
row's noise comes from its own seed. A network's sums depend on the batch, the number of threads and
the device, so another batch changes a row by rounding: on a CPU in fp32 by at most 1e-4 in [-1, 1],
that is by one of 255 levels (tested). Networks with random weights can change single pixels by more
if sampling starts at the last training step, where x_0 is a small difference divided by 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray.components.generators.generator_checks import refuse_overflow, refuse_unknown_labels
from pe_ray.components.weights import Precision
from pe_ray.errors import InputError
from pe_ray.plugins import GeneratorOptions, Rows
from pe_ray.plugins.seeds import Seeds, normals

Classes = Literal["random"] | dict[str, tuple[Annotated[int, Field(ge=0)], ...]]
ClassIds = NDArray[np.int32]


class DiffusionOptions(GeneratorOptions):
    """Options that all pixel diffusion generators have."""

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
        """Classes that the model knows; None if it is not class-conditional."""
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


class Sampler(Protocol):
    """A diffusion model with its sampler."""

    def denoise(
        self, noise: Any, labels: Any = None, start_step: int = 0, start_images: Any = None
    ) -> Any:
        """Return images, float32 [n, channels, height, width] in [-1, 1].

        noise: standard normal, [n, channels, height, width]. labels: class numbers [n], for a model
        with classes. start_images: uint8 [n, height, width, channels], or float in [-1, 1] shaped
        as the noise. With them, sampling skips `start_step` steps and starts from these images,
        with as much noise as the first step expects; with None it starts from pure noise.
        """
        ...


class DiffusionGenerator:
    """RANDOM_API: noise to image. VARIATION_API: image, with noise, to image, in fewer steps.

    `degree` is the number of sampling steps that a variation skips (Lin et al. 2024, section 4):
    with 0 hardly anything of the image is left, with the largest hardly anything changes.
    """

    def __init__(
        self, options: DiffusionOptions, sampler: Sampler, choices: list[ClassIds] | None
    ) -> None:
        self._options = options
        self._sampler = sampler
        self._choices = choices

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Sample from each row's own noise, with a class drawn from those of its label."""
        classes = None
        if self._choices is not None:
            of_rows = [self._choices[label] for label in labels]
            drawn = [of[seed % len(of)] for of, seed in zip(of_rows, seeds, strict=True)]
            classes = np.array(drawn, dtype=np.int32)
        return self._to_rows(self._sampler.denoise(self._draw_noise(seeds), classes), classes)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Sample from each row's image and own noise, skipping `degree` steps, in its class."""
        self._options.check_degree(degree)
        classes = rows["class_id"] if self._choices is not None else None
        noise = self._draw_noise(seeds)
        images = self._sampler.denoise(noise, classes, int(degree), rows["image"])
        return self._to_rows(images, classes)

    def _draw_noise(self, seeds: Seeds) -> NDArray[np.float32]:
        shape = self._options.image_shape
        flat = normals(seeds, shape.num_bytes)
        return flat.reshape(len(seeds), shape.channels, shape.height, shape.width)

    def _to_rows(self, images: NDArray[np.float32], classes: ClassIds | None) -> Rows:
        refuse_overflow(images, self._options.precision)
        # Rounded, not cut off: each generation would get darker by half a level.
        levels = np.rint((images + 1) * np.float32(127.5)).astype(np.uint8)
        own = {} if classes is None else {"class_id": classes}
        return {"image": np.ascontiguousarray(levels.transpose(0, 2, 3, 1)), **own}


def choose_classes(
    classes: Classes | None, num_classes: int | None, label_names: Sequence[str]
) -> list[ClassIds] | None:
    """Return the classes that each label's draws pick from, equally likely.

    None for a model without classes. With classes None, a label's class is its position.
    """
    if num_classes is None:
        if isinstance(classes, dict):
            raise InputError("generator.classes: the model has none; leave it out")
        return None
    if classes == "random":
        return [np.arange(num_classes, dtype=np.int32)] * len(label_names)
    if classes is None:
        if num_classes != len(label_names):
            raise InputError(
                f"generator.classes: the model has {num_classes} classes for {len(label_names)} "
                "labels; write label: [class numbers] for each label, or random"
            )
        classes = {name: (position,) for position, name in enumerate(label_names)}
    refuse_unknown_labels("classes", classes, label_names)
    for name in label_names:
        if not classes.get(name):
            raise InputError(f"generator.classes: give label {name!r} at least one class number")
    largest = max(max(ids) for ids in classes.values())
    if largest >= num_classes or min(min(ids) for ids in classes.values()) < 0:
        raise InputError(f"generator.classes: the model's classes are 0 to {num_classes - 1}")
    return [np.array(classes[name], dtype=np.int32) for name in label_names]

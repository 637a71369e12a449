"""What generators on pixel diffusion models share; each model brings its sampler.

An image is a function of its noise and class, and a row's noise comes from its own seed. Another
batch changes a row by rounding: on a CPU in fp32 by one of 255 levels at most (tested).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray.components.generators.ddim import DdimSampler
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

    def load(self) -> DdimSampler:
        """Load the model with its sampler."""
        raise NotImplementedError

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


class DiffusionGenerator:
    """RANDOM_API: noise to image. VARIATION_API: image, with noise, to image, in fewer steps.

    `degree` is the number of sampling steps that a variation skips (Lin et al. 2024, section 4).
    """

    def __init__(self, options: Any, label_names: Sequence[str]) -> None:
        self._options = options
        self._choices = choose_classes(options.classes, options.num_classes, label_names)
        self._sampler = options.load()

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
    """Return the classes that each label's draws pick from; None for a model without classes."""
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
        wanted = classes.get(name, ())
        if not wanted or max(wanted) >= num_classes:
            raise InputError(
                f"generator.classes: give label {name!r} numbers from 0 to {num_classes - 1}"
            )
    return [np.array(classes[name], dtype=np.int32) for name in label_names]

"""Plugins: the three things a user brings (Generator, Embedder, Metric) and how they are found.

A plugin is a class with an `Options` model (pydantic, frozen, unknown keys refused). Its module
must import without torch, diffusers, transformers or faiss: load those in `__init__`, which runs
in the actor that uses the plugin. `kind: my_pkg.my_module:MyClass` loads any importable class; a
package may also give it a short name with an entry point in `pe_ray.generators`,
`pe_ray.embedders` or `pe_ray.metrics`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pe_ray.errors import InputError
from pe_ray.seeds import Seeds
from pe_ray.values import DistanceMetric, ImageShape, Price

Images = NDArray[np.uint8]
"""Images, uint8 [n, height, width, channels]."""

Rows = dict[str, NDArray[Any]]
"""Column name -> array whose first axis is the row; `image` (Images), `label` (int32) and the
generator's own columns."""


class Options(BaseModel):
    """Base of a plugin's options: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GeneratorOptions(Options):
    """Base of a generator's options: also says what its rows look like."""

    @property
    def image_shape(self) -> ImageShape:
        """Shape of every image this generator makes."""
        raise NotImplementedError

    @property
    def columns(self) -> Mapping[str, tuple[str, int]]:
        """Own columns beside the image: name -> (numpy dtype, values per row)."""
        return {}

    @property
    def unbound(self) -> frozenset[str]:
        """Options that, like `resources`, change no output: a run may go on with other values."""
        return frozenset()

    @property
    def call_price(self) -> Price | None:
        """What calls cost and the caps on them; None: nothing. What costs is never only timed."""
        return None

    @property
    def shown_data(self) -> str | None:
        """Where images are that samples show as they are; private data are refused there."""
        return None

    def check_degree(self, degree: float) -> None:
        """Raise ValueError where `vary` can't run at `degree`; called before a run starts."""


class EmbedderOptions(Options):
    """Base of an embedder's options."""

    @property
    def learnt(self) -> bool:
        """Whether a run learns it, so that its embeddings mean nothing elsewhere."""
        return False

    def dim(self, shape: ImageShape) -> int:
        """Length of the embedding of an image of `shape`."""
        raise NotImplementedError


class Generator(Protocol):
    """RANDOM_API and VARIATION_API (Lin et al. 2024, section 3).

    Both return as many rows as they are given, in order, with `image` and every own column.
    A row of the result depends on its label, its own row and its own seed, never on the batch.
    """

    Options: ClassVar[type[GeneratorOptions]]

    def __init__(self, options: Any, label_names: Sequence[str]) -> None: ...

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Draw one sample for each label; labels and seeds have shape [n]."""
        ...

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Draw one variation of each row; `degree` is how far it may stray, in own units."""
        ...


class Embedder(Protocol):
    """Images to vectors in which distance means likeness; deterministic, row by row.

    Whatever the batch, a row comes out the same up to rounding.
    """

    Options: ClassVar[type[EmbedderOptions]]

    def __init__(self, options: Any) -> None: ...

    @property
    def metric(self) -> DistanceMetric:
        """The distance this embedding is meant for, which `nearest_image` uses; records vote by
        `votes.metric`.
        """
        ...

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Embeddings, float32 [n, dim], of images of one shape (any height and width).

        n may be thousands: an embedder bounds its own memory, in chunks that are always the same,
        as what it makes must not depend on `resources`.
        """
        ...


class Metric(Protocol):
    """A score of labelled synthetic images against labelled reference images.

    A run gives it released images and a public reference; only `pe-ray audit` gives it private
    ones.
    """

    Options: ClassVar[type[Options]]

    def __init__(self, options: Any) -> None: ...

    def score(
        self,
        images: Images,
        labels: NDArray[np.int32],
        reference_images: Images,
        reference_labels: NDArray[np.int32],
    ) -> dict[str, float]:
        """Named scores; images and reference_images have the same shape but for the first axis."""
        ...


PluginType = Literal["generator", "embedder", "metric"]

_BUILT_IN: Mapping[PluginType, Mapping[str, str]] = {
    "generator": {
        "rendered_text": "pe_ray.components.simulators:RenderedText",
        "stable_diffusion": "pe_ray.components.stable_diffusion:StableDiffusion",
        "improved_diffusion": "pe_ray.components.diffusion:ImprovedDiffusionGenerator",
        "unet": "pe_ray.components.diffusion:UNetGenerator",
        "image_api": "pe_ray.components.image_api:ImageApi",
        "nearest_image": "pe_ray.components.nearest_image:NearestImage",
    },
    "embedder": {
        "pixels": "pe_ray.components.features:Pixels",
        "inception": "pe_ray.components.networks:Inception",
        "clip": "pe_ray.components.networks:Clip",
        "dinov2": "pe_ray.components.networks:Dinov2",
        "label_features": "pe_ray.components.label_features:LabelFeatures",
    },
    "metric": {
        "frechet": "pe_ray.components.scores:FrechetDistance",
        "kid": "pe_ray.components.scores:KernelDistance",
        "precision_recall": "pe_ray.components.scores:PrecisionRecall",
        "classifier": "pe_ray.components.scores:ClassifierAccuracy",
        "cnn": "pe_ray.components.scores:ConvnetAccuracy",
    },
}


def registered(plugin_type: PluginType) -> dict[str, str]:
    """Short name -> "module:Class" of every known plugin: built-in and from entry points."""
    known = dict(_BUILT_IN[plugin_type])
    for entry in entry_points(group=f"pe_ray.{plugin_type}s"):
        if known.get(entry.name, entry.value) != entry.value:
            raise InputError(
                f"{plugin_type}.kind: two installed packages register {entry.name!r} "
                f"({known[entry.name]} and {entry.value}); uninstall one or use module:Class"
            )
        known[entry.name] = entry.value
    return known


def load(plugin_type: PluginType, kind: str) -> Any:
    """The plugin class named `kind`: a registered name or "module:Class"."""
    known = registered(plugin_type)
    target = known.get(kind, kind)
    module_name, _, class_name = target.partition(":")
    if not class_name:
        switch = {"switch"} if plugin_type == "generator" else set()  # see blocks.Switch
        raise InputError(
            f"{plugin_type}.kind: {kind!r} is not known; use one of "
            f"{', '.join(sorted(known.keys() | switch))} or module:Class"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{plugin_type}.kind: can't load {target}: {error}") from error
    options = getattr(found, "Options", None)
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise InputError(f"{plugin_type}.kind: {target} has no Options model (see pe_ray.plugins)")
    return found

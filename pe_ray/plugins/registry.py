"""Find plugins: by a built-in name, by an entry point, or as `module:Class`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Literal

from pe_ray.errors import InputError
from pe_ray.plugins.options import Options

PluginType = Literal["generator", "embedder", "metric"]

_ROOT = "pe_ray.components"
_BUILT_IN: Mapping[PluginType, Mapping[str, str]] = {
    "generator": {
        "rendered_text": _ROOT + ".generators.rendered_text:RenderedText",
        "stable_diffusion": _ROOT + ".generators.stable_diffusion:StableDiffusion",
        "improved_diffusion": _ROOT + ".generators.pixel_diffusion:ImprovedDiffusionGenerator",
        "unet": _ROOT + ".generators.pixel_diffusion:UNetGenerator",
        "image_api": _ROOT + ".generators.image_api:ImageApi",
        "nearest_image": _ROOT + ".generators.nearest_image:NearestImage",
    },
    "embedder": {
        "pixels": _ROOT + ".embedders.pixels:Pixels",
        "inception": _ROOT + ".embedders.networks:Inception",
        "clip": _ROOT + ".embedders.networks:Clip",
        "dinov2": _ROOT + ".embedders.networks:Dinov2",
        "label_features": _ROOT + ".embedders.label_features:LabelFeatures",
    },
    "metric": {
        "frechet": _ROOT + ".metrics.scores:FrechetDistance",
        "kid": _ROOT + ".metrics.scores:KernelDistance",
        "precision_recall": _ROOT + ".metrics.scores:PrecisionRecall",
        "classifier": _ROOT + ".metrics.scores:ClassifierAccuracy",
        "cnn": _ROOT + ".metrics.scores:ConvnetAccuracy",
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

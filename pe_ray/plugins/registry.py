"""Find plugins: by a built-in name, by an entry point, or as `module:Class`.

A plugin says everything about itself: its options are the model in its attribute `Options`, and
whoever uses it asks it rather than its name.

A file of a run may have been written by somebody else. What it names is loaded within `only_known`,
so that opening a run imports no module of its author's choice.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import Any, Literal

from pe_ray.errors import InputError
from pe_ray.files.contents import read_named_states
from pe_ray.plugins.options import BOUND, EmbedderOptions, GeneratorOptions, Options
from pe_ray.plugins.spelling import did_you_mean

PluginType = Literal[
    "generator",
    "embedder",
    "metric",
    "denoiser",
    "export_format",
    "tuning_strategy",
    "tuning_objective",
    "release",
]

_ROOT = "pe_ray.components"
BUILT_IN: Mapping[PluginType, Mapping[str, str]] = {
    "generator": {
        "rendered_text": _ROOT + ".generators.rendered_text:RenderedText",
        "diffusers": _ROOT + ".generators.diffusers_generator:Diffusers",
        "stable_diffusion": _ROOT + ".generators.diffusers_generator:Diffusers",
        "improved_diffusion": _ROOT + ".generators.improved_diffusion:ImprovedDiffusionGenerator",
        "unet": _ROOT + ".generators.unet_pipeline:UNetGenerator",
        "image_api": _ROOT + ".generators.image_api:ImageApi",
        "fal": _ROOT + ".generators.fal:Fal",
        "nearest_image": _ROOT + ".generators.nearest_image:NearestImage",
        "mixture": _ROOT + ".generators.mixture:Mixture",
        "gaussians": _ROOT + ".generators.gaussians:Gaussians",
    },
    "embedder": {
        "pixels": _ROOT + ".embedders.pixels:Pixels",
        "inception": _ROOT + ".embedders.inception:Inception",
        "transformers": _ROOT + ".embedders.transformers_vision:Transformers",
        "clip": _ROOT + ".embedders.transformers_vision:Clip",
        "dinov2": _ROOT + ".embedders.transformers_vision:Transformers",
        "natural": _ROOT + ".embedders.timm_networks:Natural",
        "timm": _ROOT + ".embedders.timm_networks:Timm",
        "onnx": _ROOT + ".embedders.onnx_network:Onnx",
        "gradients": _ROOT + ".embedders.gradients:Gradients",
        "joined": _ROOT + ".embedders.joined:Joined",
        "label_features": _ROOT + ".embedders.label_features:LabelFeatures",
    },
    "metric": {
        "frechet": _ROOT + ".metrics.distance_metrics:FrechetDistance",
        "kid": _ROOT + ".metrics.distance_metrics:KernelDistance",
        "precision_recall": _ROOT + ".metrics.distance_metrics:PrecisionRecall",
        "classifier": _ROOT + ".metrics.accuracy_metrics:ClassifierAccuracy",
        "cnn": _ROOT + ".metrics.accuracy_metrics:ConvnetAccuracy",
    },
    "denoiser": {
        "threshold": _ROOT + ".denoisers:Threshold",
        "simplex": _ROOT + ".denoisers:Simplex",
        "none": _ROOT + ".denoisers:Clip",
    },
    "export_format": {
        "parquet": "pe_ray.synthetic.export_formats:Parquet",
        "webdataset": "pe_ray.synthetic.export_formats:WebDataset",
        "folder": "pe_ray.synthetic.export_formats:ImageFolder",
    },
    "tuning_strategy": {
        "public": "pe_ray.tuning.strategies.stand_in:StandIn",
        "proxy": "pe_ray.tuning.strategies.proxy:Proxy",
        "compose": "pe_ray.tuning.strategies.compose:Compose",
    },
    "tuning_objective": {
        "public": "pe_ray.tuning.objectives.public_metric:PublicMetric",
        "moments": "pe_ray.tuning.objectives.noisy_moments:NoisyMoments",
    },
    "release": {
        "votes": "pe_ray.release.releases:Votes",
        "label_counts": "pe_ray.release.releases:LabelCounts",
        "sums": "pe_ray.release.releases:Sums",
    },
}
"""Plugin type -> name -> "module:NAME" of the plugins that come with the package."""

_OPTIONS: Mapping[PluginType, type[Options]] = {
    "generator": GeneratorOptions,
    "embedder": EmbedderOptions,
}


def registered(plugin_type: PluginType) -> dict[str, str]:
    """Return name -> "module:NAME" of every known plugin: from entry points and built-in."""
    found = {entry.name: entry.value for entry in entry_points(group=group_of(plugin_type))}
    return {**found, **BUILT_IN[plugin_type]}


def group_of(plugin_type: PluginType) -> str:
    """Return the entry point group in which packages name their plugins of this type."""
    plural = plugin_type[:-1] + "ies" if plugin_type.endswith("y") else plugin_type + "s"
    return f"pe_ray.{plural}"


_loaded: set[tuple[PluginType, str]] = set()
_guarded = ContextVar("_guarded", default=False)
_trusting = ContextVar("_trusting", default=False)


@contextmanager
def only_known() -> Iterator[None]:
    """Within the block, load built-in kinds and those that this process has loaded before.

    Others raise InputError, except within `trust_plugins`.
    """
    token = _guarded.set(True)
    try:
        yield
    finally:
        _guarded.reset(token)


@contextmanager
def trust_plugins() -> Iterator[None]:
    """Within the block, opening a run imports whatever its files name."""
    token = _trusting.set(True)
    try:
        yield
    finally:
        _trusting.reset(token)


def load(plugin_type: PluginType, kind: str) -> Any:
    """Import the plugin named `kind`: a registered name or "module:Class"."""
    known = BUILT_IN[plugin_type]
    if kind not in known:  # to look through all installed packages takes a while
        known = registered(plugin_type)
    target = known.get(kind, kind)
    module_name, _, name = target.partition(":")
    if not name:
        raise InputError(
            f"{plugin_type}.kind: {kind!r} is not known{did_you_mean(kind, known)}; use one of "
            f"{', '.join(sorted(known))} or module:Class"
        )
    known_here = kind in BUILT_IN[plugin_type] or (plugin_type, kind) in _loaded
    if _guarded.get() and not (_trusting.get() or known_here):
        raise InputError(
            f"{plugin_type}.kind: {kind!r} is not built in, and a run may be somebody else's; if "
            "you trust whoever made it, give --trust-plugins (in Python: plugins.trust_plugins())"
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{plugin_type}.kind: can't load {target}: {error}") from error
    base = _OPTIONS.get(plugin_type, Options)
    options = options_of(found)
    if not (isinstance(options, type) and issubclass(options, base)):
        raise InputError(
            f"{plugin_type}.kind: {target} has no Options model; give it an attribute Options, a "
            f"subclass of pe_ray.plugins.{base.__name__}"
        )
    _loaded.add((plugin_type, kind))
    return found


def options_of(plugin: Any) -> Any:
    """Return the options model of a loaded plugin; one without `Options` takes none."""
    return getattr(plugin, "Options", Options)


_built: dict[PluginType, tuple[str, Any]] = {}


def build(plugin_type: PluginType, kind: str, options: Options, *arguments: Any) -> Any:
    """Return the plugin `kind` made with these options, built once per process.

    It is built again where a file that its options name has changed. Only the last of each type is
    kept, so a process never holds two sets of weights.
    """
    states = read_named_states(options.model_dump(mode="json", context=BOUND))
    key = repr((kind, options.model_dump_json(), arguments, states))
    if plugin_type not in _built or _built[plugin_type][0] != key:
        _built[plugin_type] = (key, load(plugin_type, kind)(options, *arguments))
    return _built[plugin_type][1]

"""Plugins: what a user brings (Generator, Embedder, Metric, Denoiser, ...) and how it is found.

A plugin is a class with an `Options` model (pydantic, frozen, unknown keys refused). Its module
must import without torch, diffusers, transformers or faiss. Load those in `__init__`, which runs in
the worker that uses the plugin. `kind: my_pkg.my_module:MyClass` loads any importable class. A
package may give it a short name with an entry point (docs/architecture.md lists the groups).
"""

from pe_ray.plugins.options import EmbedderOptions, GeneratorOptions, MetricOptions, Options
from pe_ray.plugins.plugin_digest import digest_plugin
from pe_ray.plugins.private_sums import PrivateSums, Statistic
from pe_ray.plugins.protocols import Denoiser, Embedder, Generator, Images, Metric, Rows
from pe_ray.plugins.registry import (
    PluginType,
    build,
    group_of,
    load,
    only_known,
    options_of,
    registered,
    trust_plugins,
)

__all__ = [
    "Denoiser",
    "Embedder",
    "EmbedderOptions",
    "Generator",
    "GeneratorOptions",
    "Images",
    "Metric",
    "MetricOptions",
    "Options",
    "PluginType",
    "PrivateSums",
    "Rows",
    "Statistic",
    "build",
    "digest_plugin",
    "group_of",
    "load",
    "only_known",
    "options_of",
    "registered",
    "trust_plugins",
]

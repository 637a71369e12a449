"""Networks' weights from files: no code that a file carries is run, and only what fits loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pe_ray.errors import InputError
from pe_ray.files.storage import at_home

if TYPE_CHECKING:
    from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "fp16"]
_SHOWN = 3  # names quoted of each kind of mismatch


def read_weights(path: str | Path, option: str) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a PyTorch one; `option` is where it was given.

    Raises InputError where the file is missing, damaged, or holds anything but named tensors.
    """
    import torch
    from safetensors.torch import load_file

    file = at_home(path)
    if not file.is_file():
        raise InputError(f"{option}: {path} is not a file; give a .pt or .safetensors checkpoint")
    try:
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(
            f"{option}: {path} was not loaded: it is damaged, or holds something else than weights "
            f"(code in a checkpoint is never run); get it again ({type(error).__name__})"
        ) from error
    tensors = isinstance(weights, Mapping) and all(map(torch.is_tensor, weights.values()))
    if not tensors:
        raise InputError(f"{option}: {path} holds no tensors by name; give a model's state dict")
    return dict(weights)


def load_into(network: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Make `weights` those of `network`, which may be on the meta device; `where`: for errors."""
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    refuse_mismatch(
        where,
        missing=[name for name in expected if name not in found],
        unexpected=[name for name in found if name not in expected],
        misshapen=[
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    )
    network.load_state_dict(weights, assign=True)


def refuse_mismatch(
    where: str, *, missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]
) -> None:
    """Raise InputError naming the first few of each kind and their number, if there are any."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    named = [
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for kind, names in kinds.items()
        if names
    ]
    if named:
        raise InputError(f"{where} has other weights than its options say: {'; '.join(named)}")

"""Pretrained weights: whole, read without running code, and every failure an InputError."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pe_ray.errors import InputError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""tf32: float32, whose products a GPU may round to 10 bits, in a fraction of the time."""
_LONGEST_REASON = 400  # characters quoted of a library's error
_FIXES = {  # of pickle and huggingface_hub; a gated repository is also one that isn't found
    "UnpicklingError": "it is damaged, or holds code, which is never run; get a whole checkpoint",
    "GatedRepoError": "accept its licence at https://huggingface.co/{name}, then run "
    "`hf auth login` on every machine",
    "RevisionNotFoundError": "the hub has no such revision; correct it",
    "RepositoryNotFoundError": "the hub doesn't show it; correct the name, or run `hf auth login` "
    "if it is private",
    "HFValidationError": "it is neither a folder here nor a hub id (owner/name); correct the name",
    "LocalEntryNotFoundError": "it is not in this machine's cache and the hub was not reached; run "
    "`hf download {name}` where there is a network, or give the folder of a local copy",
}


@contextmanager
def loading_errors(option: str, checkpoint: str | Path, part: str = "") -> Iterator[None]:
    """Re-raise any failure to load `checkpoint` as InputError naming `option` and the fix.

    option: where the user wrote it. part: what of the checkpoint is being loaded.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged checkpoint can fail in any way
        where = f"{option}: {checkpoint}{f': {part}' if part else ''}"
        raise InputError(f"{where} can't be loaded: {_explain(error, str(checkpoint))}") from error


def _explain(error: BaseException, name: str) -> str:
    """Return the reason, by the known kinds of error that caused this one, and the fix."""
    kinds = set()
    cause: BaseException | None = error
    while cause is not None:
        kinds |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    for kind, fix in _FIXES.items():
        if kind in kinds:
            return fix.format(name=name)
    reason = textwrap.shorten(str(error), _LONGEST_REASON, placeholder=" ...")
    return f"{reason or type(error).__name__}; get a whole checkpoint, weights in safetensors"


def fetch_checkpoint(option: str, checkpoint: str, revision: str, patterns: list[str]) -> str:
    """Return the checkpoint's folder; of a hub id, with its files of these names."""
    if Path(checkpoint).is_dir():
        return checkpoint
    from huggingface_hub import snapshot_download

    with loading_errors(option, checkpoint):
        return str(snapshot_download(checkpoint, revision=revision, allow_patterns=patterns))


def load_network(
    network: Any,
    option: str,
    checkpoint: str,
    part: str = "",
    *,
    refuse_unexpected: bool = False,
    **given: Any,
) -> Any:
    """Return `network.from_pretrained(checkpoint, **given)` with all its weights from there.

    network: a class of diffusers or transformers; both fill missing weights with random numbers.
    Where a `state_dict` is given, the weights are those, and `checkpoint` only names them.
    part: subfolder of the checkpoint. Raises InputError with the names of the weights that don't
    fit; those that are not the network's are left out, or refused too if `refuse_unexpected`.
    """
    if part:
        given["subfolder"] = part
    with loading_errors(option, checkpoint, part):
        loaded, report = network.from_pretrained(
            None if "state_dict" in given else checkpoint,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **given,
        )
        kinds: dict[str, Collection[str]] = {
            "missing": report["missing_keys"],
            "of another shape": [
                f"{name} {list(found)} instead of {list(expected)}"
                for name, found, expected in report["mismatched_keys"]
            ],
            "unexpected": report["unexpected_keys"] if refuse_unexpected else (),
        }
        faults = [
            f"{len(names)} {kind} ({', '.join(sorted(names))})"
            for kind, names in kinds.items()
            if names
        ]
        if faults:
            raise ValueError(f"other weights than its configuration says: {'; '.join(faults)}")
    return loaded


def read_weights(file: Path) -> Any:
    """Return what a .safetensors file or a PyTorch file holds; code in the file is never run."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    import torch

    return torch.load(file, map_location="cpu", weights_only=True)

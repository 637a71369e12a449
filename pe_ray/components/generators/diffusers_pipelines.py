"""Load diffusers' latent diffusion pipelines, from a folder or the hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from pe_ray.components.weights import Precision, load_network, loading_errors
from pe_ray.errors import InputError

logger = logging.getLogger(__name__)

_FAMILIES = ("StableDiffusion", "StableDiffusionXL", "LatentConsistencyModel")
_PIPELINES = {f"{family}{task}Pipeline" for family in _FAMILIES for task in ("", "Img2Img")}
_LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}  # the last: the safety checker
# They draw the noise of the whole batch from one stream, even if each row has a generator.
_BATCH_NOISE = {"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"}


def load_pipeline(
    task: Literal["Text2Image", "Image2Image"],
    option: str,
    name: str,
    revision: str | None,
    *,
    precision: Precision,
    compiled: bool,
) -> Any:
    """Return a diffusers pipeline on `inference.pick_device()`.

    option: where the user wrote `name`, a folder or hub id. Weights are read from safetensors only,
    and no code of the checkpoint is run. A safety checker is not loaded: it would put black images
    in place of some.
    """
    import diffusers
    import transformers

    from pe_ray.components.inference import DTYPES, pick_device

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    unchecked: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    with loading_errors(option, name):
        index = diffusers.DiffusionPipeline.load_config(name, revision=revision)
        _check_index(index, option, name)
        folder = name
        if not Path(name).is_dir():
            download = diffusers.DiffusionPipeline.download
            folder = str(download(name, revision=revision, use_safetensors=True, **unchecked))
    dtype = DTYPES[precision]
    networks = _load_networks(index, option, folder, dtype)
    auto = getattr(diffusers, f"AutoPipelineFor{task}")
    with loading_errors(option, name):
        pipeline = auto.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, **networks, **unchecked
        )
    device = pick_device()
    logger.info("%s: %s on %s in %s", option, name, device, precision)
    pipeline = _silence(pipeline.to(device))
    if compiled:
        pipeline.unet.compile()
    return pipeline


def share_as_image_to_image(pipeline: Any) -> Any:
    """Return an image-to-image pipeline on the weights of `pipeline`, in memory once."""
    from diffusers import AutoPipelineForImage2Image

    return _silence(AutoPipelineForImage2Image.from_pipe(pipeline))


def _silence(pipeline: Any) -> Any:
    """Turn off progress bars, and SDXL's watermark, which depends on what is installed."""
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(pipeline, "watermark"):
        pipeline.watermark = None
    return pipeline


def _check_index(index: dict[str, Any], option: str, name: str) -> None:
    """Refuse a pipeline of another family, with code of its own, or that mixes rows' noise."""
    family = index.get("_class_name")
    if family not in _PIPELINES:
        raise InputError(
            f"{option}: {name} is a {family}; give a Stable Diffusion 1, 2 or XL checkpoint"
        )
    for part, (library, kind) in _parts(index).items():
        if library not in _LIBRARIES:
            raise InputError(
                f"{option}: {name} has a {part} made by code of its own ({library}), which is "
                "never run; give another checkpoint"
            )
        if kind in _BATCH_NOISE:
            raise InputError(
                f"{option}: {name} has a {kind}, which draws noise for a whole batch, so a row's "
                "image would depend on its batch; save it with another scheduler"
            )


def _parts(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the pipeline's parts by name: their library and class there."""
    pairs = {part: value for part, value in index.items() if isinstance(value, list | tuple)}
    return {part: (value[0], value[1]) for part, value in pairs.items() if value[0] is not None}


def _load_networks(index: dict[str, Any], option: str, folder: str, dtype: Any) -> dict[str, Any]:
    """Return the pipeline's networks by name, each with all its weights.

    A pipeline that loads them itself fills missing weights with random numbers.
    """
    import diffusers
    import torch
    import transformers

    networks = {}
    for part, (library, kind) in _parts(index).items():
        module = {"diffusers": diffusers, "transformers": transformers}.get(library)
        network = getattr(module, kind, None)
        if isinstance(network, type) and issubclass(network, torch.nn.Module):
            networks[part] = load_network(
                network,
                option,
                folder,
                part,
                use_safetensors=True,
                local_files_only=True,
                **{"dtype" if library == "transformers" else "torch_dtype": dtype},
            )
    return networks

"""Stable Diffusion checkpoints, from a folder or the hub: only whole, safe and known ones load."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pe_ray.components.weights import Precision, refuse_mismatch
from pe_ray.errors import InputError

logger = logging.getLogger(__name__)


_FAMILIES = ("StableDiffusion", "StableDiffusionXL", "LatentConsistencyModel")
_PIPELINES = {f"{family}{task}Pipeline" for family in _FAMILIES for task in ("", "Img2Img")}
_LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}  # the last: diffusers' own checker
# Their noise comes from one stream for the whole batch, whatever generators they are given.
_BATCH_NOISE = {"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"}
_INDEX = "model_index.json"
_LOADING_ERRORS = (OSError, ValueError, ImportError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder or hub id, with its revision there; `option` is where the user wrote it."""

    option: str
    name: str
    revision: str | None

    def wrong(self, what: str) -> InputError:
        return InputError(f"{self.option}: {self.name} {what}")


def load_pipeline(
    checkpoint: Checkpoint,
    task: Literal["text_to_image", "image_to_image"],
    *,
    precision: Precision,
    compiled: bool,
) -> Any:
    """A diffusers pipeline on this process's GPU, or on the CPU where it has none.

    Weights come from safetensors alone, and no code from the checkpoint is run. Raises InputError
    where the checkpoint can't be had, isn't whole, or isn't of a known family.
    """
    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    index = _index(checkpoint)
    has_checker = _check(checkpoint, index)
    without: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    auto = {
        "text_to_image": diffusers.AutoPipelineForText2Image,
        "image_to_image": diffusers.AutoPipelineForImage2Image,
    }[task]
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    given = {"revision": checkpoint.revision, "use_safetensors": True}
    try:
        pipeline = auto.from_pretrained(
            checkpoint.name,
            trust_remote_code=False,
            torch_dtype=dtypes[precision],
            **given,
            **(without if has_checker else {}),
            **_networks(checkpoint, index, dtypes[precision], given),
        )
    except InputError:
        raise
    except _LOADING_ERRORS as error:
        raise _unloaded(checkpoint, error) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logger.info("%s: %s on %s in %s", checkpoint.option, checkpoint.name, device, precision)
    pipeline = _quiet(pipeline.to(device))
    if compiled:
        pipeline.unet.compile()
    return pipeline


def _unloaded(checkpoint: Checkpoint, error: Exception, part: str = "") -> InputError:
    reason = " ".join(str(error).split()).removesuffix(".")
    return checkpoint.wrong(
        f"can't be loaded: {part}{reason}; give a whole diffusers pipeline, weights in safetensors"
    )


def _networks(
    checkpoint: Checkpoint, index: dict[str, Any], dtype: Any, given: dict[str, Any]
) -> dict[str, Any]:
    """The networks by name, each whole: a pipeline would fill what is missing with chance."""
    import diffusers
    import torch
    import transformers

    made = {}
    for name, part in index.items():
        library, kind = part if isinstance(part, list) and part[0] else ("", "")
        kinds = {"diffusers": diffusers, "transformers": transformers}.get(library)
        network = getattr(kinds, kind, None)
        if not (isinstance(network, type) and issubclass(network, torch.nn.Module)):
            continue
        own: dict[str, Any] = {"torch_dtype": dtype}
        if library == "transformers":  # else its error wouldn't say which weights don't fit
            own = {"dtype": dtype, "ignore_mismatched_sizes": True}
        try:
            found, report = network.from_pretrained(  # type: ignore[attr-defined]
                checkpoint.name, subfolder=name, output_loading_info=True, **own, **given
            )
        except _LOADING_ERRORS as error:
            raise _unloaded(checkpoint, error, f"{name}: ") from error
        refuse_mismatch(
            f"{checkpoint.option}: {checkpoint.name}: {name}",
            missing=sorted(report["missing_keys"]),
            unexpected=(),
            misshapen=[
                f"{weight} {list(a)} instead of {list(b)}"
                for weight, a, b in sorted(report["mismatched_keys"])
            ],
        )
        made[name] = found
    return made


def image_to_image_on(pipeline: Any) -> Any:
    """An image-to-image pipeline on the weights of `pipeline`: they are in memory once."""
    from diffusers import AutoPipelineForImage2Image

    return _quiet(AutoPipelineForImage2Image.from_pipe(pipeline))


def _quiet(pipeline: Any) -> Any:
    """Without progress bars, and without SDXL's watermark, which depends on what is installed."""
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(pipeline, "watermark"):
        pipeline.watermark = None
    return pipeline


def _check(checkpoint: Checkpoint, index: dict[str, Any]) -> bool:
    """Refuse what can't run as it should; return whether there is a safety checker."""
    family = index.get("_class_name")
    if not isinstance(family, str) or family not in _PIPELINES:
        raise checkpoint.wrong(f"is a {family}; give a Stable Diffusion 1, 2 or XL checkpoint")
    parts = {name: value for name, value in index.items() if isinstance(value, list)}
    parts = {name: value for name, value in parts.items() if value != [None, None]}
    pairs = all(len(value) == 2 for value in parts.values())
    if not pairs or not all(isinstance(word, str) for value in parts.values() for word in value):
        raise checkpoint.wrong(f"has a damaged {_INDEX}; copy it again")
    has_checker = parts.pop("safety_checker", None) is not None
    folder = Path(checkpoint.name)
    missing = [name for name in sorted(parts) if folder.is_dir() and not (folder / name).is_dir()]
    if missing:
        # Without its folder a tokenizer would load too, but one that knows no word.
        raise checkpoint.wrong(f"lacks {', '.join(missing)}; copy it whole")
    for name, (library, kind) in parts.items():
        if library not in _LIBRARIES:
            raise checkpoint.wrong(
                f"has a {name} made by code of its own ({library}), which is never run; give "
                "another checkpoint"
            )
        if kind in _BATCH_NOISE:
            raise checkpoint.wrong(
                f"has a {kind}, which draws noise for a whole batch, so a row's image would depend "
                "on its batch; save it with another scheduler"
            )
    return has_checker


def _index(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's model_index.json: which pipeline it is and of what parts."""
    file = Path(checkpoint.name) / _INDEX
    if not Path(checkpoint.name).is_dir():
        file = _index_from_hub(checkpoint)
    elif not file.is_file():
        raise checkpoint.wrong(f"has no {_INDEX}; give the folder of a diffusers pipeline")
    try:
        return dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise checkpoint.wrong(f"has a damaged {_INDEX}; copy it again") from error


def _index_from_hub(checkpoint: Checkpoint) -> Path:
    """Where model_index.json lies in this machine's cache, downloaded if need be."""
    from huggingface_hub import errors, hf_hub_download

    name, revision, wrong = checkpoint.name, checkpoint.revision, checkpoint.wrong
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise wrong("is neither a folder on this machine nor a hub id (owner/name)")
    local = "or give the folder of a local copy"
    try:
        found = hf_hub_download(name, _INDEX, revision=revision)
    except errors.GatedRepoError as error:
        raise wrong(
            f"asks for its licence to be accepted: do so at https://huggingface.co/{name}, then "
            f"`hf auth login` on every machine, {local}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise wrong(f"has no revision {revision!r}; mend it or leave it out") from error
    except errors.RepositoryNotFoundError as error:
        raise wrong(
            f"is not shown by the hub; mend the name, `hf auth login` if it is private, {local}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise wrong(
            "is not in this machine's cache and the hub can't be reached; run "
            f"`hf download {name}` where there is a network, {local}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise wrong(f"has no {_INDEX}; give a model in diffusers' format") from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise wrong(f"was refused by the hub: {reason}; mend that {local}") from error
    return Path(found)

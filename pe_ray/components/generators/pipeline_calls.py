"""How a diffusers pipeline is called: its arguments are read from its own signature.

Imports torch: import this module where the pipeline runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pe_ray.errors import InputError
from pe_ray.plugins.seeds import Seeds, uniforms

_STATE_START, _STATE_WORDS = 24, 624  # of torch's Mersenne Twister, in the bytes of its state
_GUIDANCE = ("true_cfg_scale", "guidance_scale")


def make_generators(seeds: Seeds) -> list[torch.Generator]:
    """Return a generator for each row, on the CPU, that all 64 bits of the seed decide.

    `manual_seed` keeps 32 bits on CPUs: of a million rows some would share their noise.
    """
    words = (uniforms(seeds, _STATE_WORDS) * 2.0**32).astype(np.int64)
    generators = []
    for row in words:
        generator = torch.Generator("cpu").manual_seed(0)
        state = generator.get_state()
        state[_STATE_START : _STATE_START + row.nbytes] = torch.from_numpy(row.view(np.uint8))
        generator.set_state(state)
        generators.append(generator)
    return generators


def takes(pipeline: Any, argument: str) -> bool:
    """Return whether a call of the pipeline takes `argument`."""
    return argument in inspect.signature(pipeline.__call__).parameters


def find_denoiser(pipeline: Any) -> Any:
    """Return the network that denoises: a transformer or a UNet."""
    return getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)


def fixed_arguments(
    pipeline: Any, height: int, width: int, max_tokens: int | None
) -> dict[str, Any]:
    """Return the arguments that every call is given, where the pipeline takes them."""
    given: dict[str, Any] = {
        "height": height,
        "width": width,
        # Quirks: some pipelines choose the nearest of the sizes that they were trained for.
        "max_area": height * width,
        "_auto_resize": False,
        "use_resolution_binning": False,
    }
    if max_tokens is not None:
        given["max_sequence_length"] = max_tokens
    return {name: value for name, value in given.items() if takes(pipeline, name)}


def guidance_arguments(pipeline: Any, guidance: float | None, count: int) -> dict[str, Any]:
    """Return the arguments of classifier-free guidance for `count` rows; None: the pipeline's own.

    A model that was distilled to take guidance as an input (`guidance_embeds`) gets it there, also
    where the pipeline could guide it a second time.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    distilled = getattr(find_denoiser(pipeline).config, "guidance_embeds", False)
    names = [name for name in _GUIDANCE if name in parameters]
    if not names:
        if guidance is None:
            return {}
        raise InputError(f"generator: {type(pipeline).__name__} takes no guidance; leave it out")
    name = names[-1 if distilled else 0]
    value = parameters[name].default if guidance is None else guidance
    arguments = {name: value}
    if name == "true_cfg_scale" and value > 1:
        arguments["negative_prompt"] = [" "] * count  # without one there is no guidance
    return arguments


def check_size(pipeline: Any, height: int, width: int) -> None:
    """Raise InputError where latents, packed or not, of this size have no whole number."""
    config = getattr(find_denoiser(pipeline), "config", None)
    patch = getattr(config, "patch_size", None) or 1
    multiple = int(getattr(pipeline, "vae_scale_factor", 1)) * int(patch)
    processor = getattr(pipeline, "image_processor", None)
    if processor is not None:
        multiple = max(multiple, int(processor.config.vae_scale_factor))
    if height % multiple or width % multiple:
        raise InputError(
            f"generator.image_size: {type(pipeline).__name__} makes images whose height and width "
            f"are multiples of {multiple}, not {height} x {width}"
        )


def check_prompts(pipeline: Any, prompts: Sequence[str], max_tokens: int | None) -> None:
    """Refuse prompts that the pipeline would cut off or not understand, without a word."""
    for text in prompts:
        counted = count_tokens(pipeline, text, max_tokens)
        if counted is None:
            raise InputError(
                f"generator: the checkpoint's tokenizer knows no word of {text!r}; its files "
                "are missing or damaged"
            )
        count, limit = counted
        if count > limit:
            raise InputError(
                f"generator: the prompt {text!r} has {count} tokens but the model reads "
                f"{limit}; shorten it"
            )


def count_tokens(pipeline: Any, text: str, max_tokens: int | None) -> tuple[int, int] | None:
    """Return a text's number of tokens and the pipeline's limit; None if it knows no word of it.

    Where several tokenizers read the text, one that reads all of it is enough: the counts are those
    of the one that cuts off least.
    """
    parts = [getattr(pipeline, f"tokenizer{end}", None) for end in ("", "_2", "_3")]
    own = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    counts = []
    for tokenizer in filter(None, parts):
        tokens = tokenizer(text, verbose=False).input_ids
        if set(tokens) <= set(tokenizer.all_special_ids):
            return None
        limit = tokenizer.model_max_length
        if own is not None:
            limit = min(limit, max_tokens or own.default)
        counts.append((len(tokens), limit))
    return min(counts, key=lambda pair: pair[0] - pair[1], default=(0, 0))

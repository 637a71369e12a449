"""Models on fal: a path for each model, JSON with strength and seed, images as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, ClassVar

from pe_ray.components.generators.image_service import ImageService
from pe_ray.components.generators.service_client import Call, Refused
from pe_ray.components.generators.service_options import (
    LIST_SECONDS,
    CallSettings,
    ServiceOptions,
    shape_of,
)
from pe_ray.plugins import GeneratorOptions

_MODELS = "https://api.fal.ai/v1/models"


class FalCall(CallSettings):
    """How images are asked for."""

    own_fields = frozenset(
        {"prompt", "image_size", "num_images", "image_url", "strength", "seed", "sync_mode"}
    )


class FalOptions(ServiceOptions):
    """Options of Fal."""

    base_url: str = "https://fal.run"
    """What comes before a model's name."""
    api_key_env: str | None = "FAL_KEY"
    """Name of the environment variable that holds the key, wherever Ray's workers run. The key is
    read nowhere else and written nowhere."""
    random: FalCall
    """A model that takes a prompt and `image_size`, e.g. fal-ai/flux/dev."""
    vary: FalCall
    """A model that takes `image_url` and `strength`, e.g. fal-ai/flux/dev/image-to-image."""

    def check_degree(self, degree: float) -> None:
        if not 0 < degree <= 1:
            raise ValueError(f"degree {degree:g}: fal needs one above 0, up to 1")

    def list_models(self) -> Mapping[str, str | None]:
        import httpx2

        asked = {"endpoint_id": sorted({self.random.model, self.vary.model})}
        answer = httpx2.get(_MODELS, params=asked, timeout=LIST_SECONDS)
        if answer.status_code == 404:
            return {}
        listed = answer.raise_for_status().json()["models"]
        states = {model["endpoint_id"]: model["metadata"]["status"] for model in listed}
        return {
            name: None if state == "active" else f"is {state}" for name, state in states.items()
        }


class Fal(ImageService):
    """A text-to-image model on fal, and an image-to-image model with a strength.

    RANDOM_API: the first with the label's prompt. VARIATION_API: the second with the same prompt;
    the degree is its strength. Both get the row's seed.
    """

    Options: ClassVar[type[GeneratorOptions]] = FalOptions
    scheme = "Key"
    _options: FalOptions

    def draw(self, prompt: str, seed: int) -> Call:
        """Ask the text-to-image model."""
        settings = self._options.random
        shape = shape_of(settings.size)
        size = {"width": shape.width, "height": shape.height}
        return _call(settings, {"prompt": prompt, "seed": seed, "image_size": size})

    def redraw(self, prompt: str, seed: int, image: bytes, degree: float) -> Call:
        """Ask the image-to-image model."""
        link = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        fields = {"prompt": prompt, "seed": seed, "image_url": link, "strength": degree}
        return _call(self._options.vary, fields)

    def find_image(self, answer: Any) -> str:
        """Return the first image; Refused where fal says that it painted over it."""
        if any(answer.get("has_nsfw_concepts") or ()):
            raise Refused("has_nsfw_concepts: the checker painted it over")
        return str(answer["images"][0]["url"])


def _call(settings: FalCall, fields: dict[str, Any]) -> Call:
    # sync_mode: the answer is a data URI, and nothing is kept there.
    sent = {**settings.parameters, **fields, "num_images": 1, "sync_mode": True}
    return Call(f"/{settings.model}", sent)

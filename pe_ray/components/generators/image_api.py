"""Services and servers with the OpenAI images interface: black-box models behind one contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from pe_ray.components.generators.generator_checks import EDITS, pick_edit
from pe_ray.components.generators.image_service import ImageService
from pe_ray.components.generators.service_client import Call, connect, read_key
from pe_ray.components.generators.service_options import (
    LIST_SECONDS,
    CallSettings,
    ServiceOptions,
    shape_of,
)
from pe_ray.plugins import GeneratorOptions


class ImageCall(CallSettings):
    """How images are asked for."""

    own_fields = frozenset({"model", "prompt", "size", "n", "image", "seed"})

    send_seed: bool = False
    """Send `seed`, made from the row's, for servers that take one (vLLM-Omni, Dynamo). OpenAI and
    Azure refuse it."""


class VaryCall(ImageCall):
    """How variations are asked for."""

    endpoint: Literal["variations", "edits"]
    """variations takes an image alone, so the degree has no effect; edits a prompt as well."""
    strengths: tuple[str, ...] = Field(default=EDITS, min_length=1)
    """`edits` only: prompts from the weakest to the strongest change, {prompt} standing for the
    label's prompt. Of k prompts, a degree in [0, 1] picks number floor(k degree), 1 the last."""
    send_strength: bool = False
    """Send the degree as `strength` and the label's own prompt instead of `strengths`, for servers
    whose model takes one."""


class ImageApiOptions(ServiceOptions):
    """Options of ImageApi."""

    base_url: str = "https://api.openai.com/v1"
    """What comes before /images/generations."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, wherever Ray's workers run; null: the
    service needs none. The key is read nowhere else and written nowhere."""
    random: ImageCall
    vary: VaryCall

    def check_degree(self, degree: float) -> None:
        if not 0 <= degree <= 1:
            raise ValueError(f"degree {degree:g}: image_api needs one from 0 to 1")

    def list_models(self) -> Mapping[str, str | None]:
        key = read_key(self.api_key_env)
        with connect(self.base_url, key and f"Bearer {key}", LIST_SECONDS) as client:
            ends = {m.id: getattr(m, "shutdown_date", None) for m in client.models.list()}
        return {name: end and f"will be shut down on {end}" for name, end in ends.items()}


class ImageApi(ImageService):
    """A service with the OpenAI images interface: generations, and variations or edits.

    RANDOM_API: `generations` with the label's prompt. VARIATION_API: `variations`, if the model has
    it (the degree has no effect), or `edits`, where the degree picks a prompt or is the strength.
    """

    Options: ClassVar[type[GeneratorOptions]] = ImageApiOptions
    _options: ImageApiOptions

    def draw(self, prompt: str, seed: int) -> Call:
        """Ask `generations`."""
        fields = _fields(self._options.random, seed) | {"prompt": prompt}
        return Call("/images/generations", fields)

    def redraw(self, prompt: str, seed: int, image: bytes, degree: float) -> Call:
        """Ask `variations` or `edits`."""
        settings = self._options.vary
        fields = _fields(settings, seed)
        words = pick_edit(settings.strengths, degree)
        if settings.send_strength:
            fields["strength"], words = degree, "{prompt}"
        if settings.endpoint == "edits":
            fields["prompt"] = words.replace("{prompt}", prompt)
        return Call(f"/images/{settings.endpoint}", fields, image)

    def find_image(self, answer: Any) -> str:
        """Return `b64_json`, or `url` without it."""
        first = answer["data"][0]
        return str(first.get("b64_json") or first["url"])


def _fields(settings: ImageCall, seed: int) -> dict[str, Any]:
    shape = shape_of(settings.size)
    size = f"{shape.width}x{shape.height}"
    sent = {**settings.parameters, "model": settings.model, "n": 1, "size": size}
    return sent | ({"seed": seed} if settings.send_seed else {})

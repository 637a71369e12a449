"""What every generator behind a paid service is told: where it is, what it may cost, how to ask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from pe_ray.config.places import LocalFolder
from pe_ray.errors import InputError
from pe_ray.plugins import GeneratorOptions, Options
from pe_ray.plugins.rehearsal import Rehearsal
from pe_ray.values import ImageShape, Price

LIST_SECONDS = 10.0  # to wait for a list of models
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _check_size(given: int | str) -> int | str:
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?", str(given)):
        raise ValueError("write the side of a square in pixels, or WIDTHxHEIGHT")
    return given


Size = Annotated[int | str, AfterValidator(_check_size)]
"""The side of a square in pixels, or WIDTHxHEIGHT."""


def shape_of(size: Size, channels: int = 3) -> ImageShape:
    """Return the shape that a size stands for."""
    width, _, height = str(size).partition("x")
    return ImageShape(height=int(height or width), width=int(width), channels=channels)


def is_safe(url: str) -> bool:
    """Tell whether nobody else can read what goes there: https, or this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


class CallSettings(Options):
    """How images are asked for."""

    own_fields: ClassVar[frozenset[str]]
    """What the generator sends itself, so `parameters` may not."""

    model: str = Field(min_length=1)
    """Name of the service's model."""
    size: Size
    """What the service draws and, for variations, is sent: a square's side or WIDTHxHEIGHT. Any
    that the model makes; an answer in another size ends the run."""
    parameters: dict[str, str | int | float | bool] = Field(default={})
    """Sent along as they are, e.g. {quality: low} or {num_inference_steps: 20}."""

    @field_validator("parameters")
    @classmethod
    def _refuse_own(cls, given: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(cls.own_fields & set(given))
        if taken:
            raise ValueError(f"{taken[0]} is sent by the generator itself; leave it out")
        return given


class Prices(Options):
    """The most that one call may cost, all in one currency: as the service lists it."""

    random: float = Field(ge=0, allow_inf_nan=False)
    vary: float = Field(ge=0, allow_inf_nan=False)


class ServiceOptions(GeneratorOptions):
    """Options of every generator behind a paid service."""

    unbound: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "store", "price", "max_calls", "max_cost", "concurrency"}
        | {"requests_per_minute", "timeout", "attempts"}
    )
    modules: ClassVar[tuple[str, ...]] = ("openai",)

    base_url: str
    api_key_env: str | None
    store: LocalFolder = Field(min_length=1)
    """Folder of what was asked and answered; every worker has to see the same one."""
    image_size: Size
    """Size of samples, as `size`: what the service draws is cut and resized to it."""
    channels: Literal[1, 3] = 3
    prompt: str = Field(default="a photo of {label}", min_length=1)
    """Prompt of every label that `prompts` doesn't name; {label} stands for the label's name."""
    prompts: dict[str, str] = Field(default={})
    """Label name -> its prompt."""
    random: CallSettings
    vary: CallSettings
    on_refusal: Literal["error", "keep"] = "error"
    """When the content policy refuses a variation: end the run, or keep the image as it was. A
    refused random draw always ends it."""
    price: Prices
    max_calls: int = Field(ge=0)
    """Calls at most, over the life of the store."""
    max_cost: float = Field(ge=0, allow_inf_nan=False)
    """Cost at most, by `price`, over the life of the store."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Calls under way at once, of each worker."""
    requests_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Calls at most, of all workers together; default: as fast as answers come."""
    timeout: float = Field(default=120.0, gt=0, le=3600)
    """Seconds without a byte from the service, after which a call has failed."""
    attempts: int = Field(default=6, ge=1, le=100)
    """Attempts at one image before the run ends."""

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, given: str) -> str:
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write it as https://HOST/PATH")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query; keys come from the environment")
        return given.rstrip("/")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.api_key_env and not is_safe(self.base_url):
            raise ValueError(
                "base_url: http would show the key to the network; use https, or api_key_env: null"
            )
        sent, kept = shape_of(self.vary.size), self.image_shape
        if sent.width * kept.height != sent.height * kept.width:  # else each variation zooms in
            raise ValueError("vary.size: must have the proportions of image_size")
        return self

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        from pe_ray.components.generators.local_service import serve

        port = serve().server_port
        return self.model_copy(
            update={
                "base_url": f"http://127.0.0.1:{port}/v1",
                "api_key_env": None,
                "store": str(rehearsal.make_folder("store")),
                "max_calls": 10**6,
                "max_cost": 1e9,
                "requests_per_minute": None,
            }
        )

    @property
    def image_shape(self) -> ImageShape:
        return shape_of(self.image_size, self.channels)

    @property
    def call_price(self) -> Price:
        return Price(**self.price.model_dump(), max_calls=self.max_calls, max_cost=self.max_cost)

    def list_models(self) -> Mapping[str, str | None]:
        """Ask for the service's models, a free call: name -> what is said of its end, if any."""
        raise NotImplementedError

    def find_warnings(self) -> Sequence[str]:
        """Name each model that the service's own list lacks, or will."""
        try:
            listed = self.list_models()
        except Exception as error:  # whatever a service answers, a plan is made
            why = error if isinstance(error, InputError) else type(error).__name__
            return [f"models not checked at {self.base_url}: {why}"]
        return [
            f"{self.base_url}: model {name!r} {state}"
            for name in sorted({self.random.model, self.vary.model})
            if (state := listed.get(name, "is not in the service's list"))
        ]

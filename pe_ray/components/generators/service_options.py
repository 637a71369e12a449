"""What every generator behind a paid service is told: where it is, what it may cost, how to ask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from pe_ray.components.generators.caption_options import CaptionedOptions
from pe_ray.components.generators.service_account import AccountOptions
from pe_ray.errors import InputError
from pe_ray.plugins import Options
from pe_ray.values import ImageShape, Price

LIST_SECONDS = 10.0  # to wait for a list of models


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


class ServiceOptions(CaptionedOptions, AccountOptions):
    """Options of every generator behind a paid service."""

    image_size: Size
    """Size of samples, as `size`: what the service draws is cut and resized to it."""
    channels: Literal[1, 3] = 3
    random: CallSettings
    vary: CallSettings
    on_refusal: Literal["error", "keep"] = "error"
    """When the content policy refuses a variation: end the run, or keep the sample as it was. A
    refused random draw always ends it."""
    price: Prices

    @model_validator(mode="after")
    def _check(self) -> Self:
        sent, kept = shape_of(self.vary.size), self.image_shape
        if sent.width * kept.height != sent.height * kept.width:  # else each variation zooms in
            raise ValueError("vary.size: must have the proportions of image_size")
        return self

    @property
    def image_shape(self) -> ImageShape:
        return shape_of(self.image_size, self.channels)

    @property
    def call_prices(self) -> Mapping[str, Price]:
        own = Price(
            random=self.price.random,
            vary=self.price.random if self.redraws else self.price.vary,
            max_calls=self.max_calls,
            max_cost=self.max_cost,
        )
        return {"generator": own, **super().call_prices}

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

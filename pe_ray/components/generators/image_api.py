"""Generator on an image service: black-box models behind the OpenAI images interface."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, field_validator, model_validator

from pe_ray.components.generators.generator_checks import EDITS, fill_prompts, pick_edit
from pe_ray.components.generators.image_service import (
    ImageService,
    ServiceRequest,
    Stopped,
    Unusable,
)
from pe_ray.components.generators.paid_calls import PaidCalls
from pe_ray.config.places import LocalFolder
from pe_ray.errors import InputError
from pe_ray.files import images
from pe_ray.plugins import GeneratorOptions, Images, Options, Rows
from pe_ray.plugins.seeds import Seeds
from pe_ray.values import Framing, ImageShape, Price

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class CallSettings(Options):
    """How images are asked for."""

    model: str = Field(min_length=1)
    """Name of the service's model."""
    size: Literal[256, 512, 1024]
    """Height and width that the service draws and, for variations, is sent."""
    parameters: dict[str, str | int | float | bool] = Field(default={})
    """Sent along as they are, e.g. {response_format: b64_json} for dall-e-2, which would answer
    with links otherwise, or {quality: low} for gpt-image-1."""

    @field_validator("parameters")
    @classmethod
    def _refuse_own(cls, given: dict[str, Any]) -> dict[str, Any]:
        taken = sorted({"model", "prompt", "size", "n", "image", "seed"} & set(given))
        if taken:
            raise ValueError(f"{taken[0]} is sent by the generator itself; leave it out")
        return given


class VaryCall(CallSettings):
    """How variations are asked for."""

    endpoint: Literal["variations", "edits"]
    """variations takes an image alone, so the degree has no effect; edits a prompt as well."""
    strengths: tuple[str, ...] = Field(default=EDITS, min_length=1)
    """`edits` only: prompts from the weakest to the strongest change, {prompt} standing for the
    label's prompt. Of k prompts, a degree in [0, 1] picks number floor(k degree), 1 the last."""


class Prices(Options):
    """The most that one call may cost, all in one currency: as the service lists it."""

    random: float = Field(ge=0, allow_inf_nan=False)
    vary: float = Field(ge=0, allow_inf_nan=False)


class ImageApiOptions(GeneratorOptions):
    """Options of ImageApi."""

    unbound: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "store", "price", "max_calls", "max_cost", "concurrency"}
        | {"requests_per_minute", "timeout", "attempts"}
    )

    base_url: str = "https://api.openai.com/v1"
    """What comes before /images/generations."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, wherever Ray's workers run; null: the
    service needs none. The key is read nowhere else and written nowhere."""
    store: LocalFolder = Field(min_length=1)
    """Folder of what was asked and answered; every worker has to see the same one. See ImageApi."""
    image_size: int = Field(ge=1, le=1024)
    """Height and width of samples, in pixels: what the service draws is resized to it."""
    channels: Literal[1, 3] = 3
    prompt: str = Field(default="a photo of {label}", min_length=1)
    """Prompt of every label that `prompts` doesn't name; {label} stands for the label's name."""
    prompts: dict[str, str] = Field(default={})
    """Label name -> its prompt."""
    random: CallSettings
    vary: VaryCall
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
    def _refuse_open_key(self) -> Self:
        parts = urlsplit(self.base_url)
        if self.api_key_env and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError(
                "base_url: http would show the key to the network; use https, or api_key_env: null"
            )
        return self

    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(height=self.image_size, width=self.image_size, channels=self.channels)

    @property
    def call_price(self) -> Price:
        return Price(**self.price.model_dump(), max_calls=self.max_calls, max_cost=self.max_cost)

    def check_degree(self, degree: float) -> None:
        if not 0 <= degree <= 1:
            raise ValueError(f"degree {degree:g}: image_api needs one from 0 to 1")


class ImageApi:
    """A service with the OpenAI images interface: generations, and variations or edits.

    RANDOM_API: `generations` with the label's prompt. VARIATION_API: `variations`, if the model has
    it (the degree has no effect), or `edits` with a prompt whose strength the degree picks. One
    call makes one image. The service gets prompts and synthetic images, nothing else.

    The service takes no seed, so two calls never answer alike. The store makes a row's image depend
    on its seed alone: a call's key is everything sent and the row's seed, and the first answer to a
    key is its only one. docs/generators.md says which calls count and where a store must lie.
    """

    Options: ClassVar[type[GeneratorOptions]] = ImageApiOptions

    def __init__(self, options: ImageApiOptions, label_names: Sequence[str]) -> None:
        self._options = options
        self._prompts = fill_prompts(options.prompt, options.prompts, label_names)
        self._service = ImageService(
            calls=PaidCalls(
                Path(options.store),
                max_calls=options.max_calls,
                max_cost=options.max_cost,
            ),
            base_url=options.base_url,
            api_key_env=options.api_key_env,
            timeout=options.timeout,
            attempts=options.attempts,
            requests_per_minute=options.requests_per_minute,
        )

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Ask `generations` with each label's prompt."""
        settings = self._options.random

        def make_request(row: int) -> ServiceRequest:
            return ServiceRequest(
                endpoint="generations",
                fields=_fields(settings) | {"prompt": self._prompts[labels[row]]},
                image=None,
                row_seed=int(seeds[row]),
                price=self._options.price.random,
            )

        return self._ask(make_request, len(seeds), settings.size)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Ask `variations` or `edits` of each row's image."""
        settings = self._options.vary
        strength = pick_edit(settings.strengths, degree)

        def make_request(row: int) -> ServiceRequest:
            fields = _fields(settings)
            if settings.endpoint == "edits":
                prompt = self._prompts[rows["label"][row]]
                fields["prompt"] = strength.replace("{prompt}", prompt)
            return ServiceRequest(
                endpoint=settings.endpoint,
                fields=fields,
                image=_encode_rgb(_fit(rows["image"][row], settings.size)),
                row_seed=int(seeds[row]),
                price=self._options.price.vary,
            )

        kept = rows["image"] if self._options.on_refusal == "keep" else None
        return self._ask(make_request, len(seeds), settings.size, kept)

    def _ask(
        self,
        make_request: Callable[[int], ServiceRequest],
        num_rows: int,
        size: int,
        kept: Images | None = None,
    ) -> Rows:
        """Ask for each row's image, `concurrency` at once. An error stops all.

        kept: images in place of those that the service refuses; None: a refusal is an error.
        """
        stop = threading.Event()
        errors: list[BaseException] = []

        def decode(content: bytes) -> NDArray[np.uint8]:
            answer = _decode_answer(content, size, self._options.channels)
            return _fit(answer, self._options.image_size)

        def ask(row: int) -> NDArray[np.uint8]:
            request, keep = make_request(row), kept is not None
            try:
                image = self._service.ask(request, decode, stop, keep_refusals=keep)
            except BaseException as error:
                errors.append(error)
                stop.set()
                raise
            return kept[row] if image is None else image  # type: ignore[index]

        with ThreadPoolExecutor(self._options.concurrency) as pool:
            try:
                return {"image": np.stack(list(pool.map(ask, range(num_rows))))}
            except Stopped:
                raise errors[0] from None
            finally:
                stop.set()


def _fields(settings: CallSettings) -> dict[str, Any]:
    size = f"{settings.size}x{settings.size}"
    return {**settings.parameters, "model": settings.model, "n": 1, "size": size}


def _encode_rgb(image: NDArray[np.uint8]) -> bytes:
    """Return one image [h, w, c] as PNG in RGB."""
    sink = io.BytesIO()
    Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3))).save(sink, format="PNG")
    return sink.getvalue()


def _fit(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    shape = ImageShape(height=side, width=side, channels=image.shape[2])
    return images.fit_image(image, Framing(shape=shape))


def _decode_answer(content: bytes, size: int, channels: int) -> NDArray[np.uint8]:
    """Return the image of a stored answer, uint8 [size, size, channels].

    Raises Unusable if it holds none, InputError if asking again would not help.
    """
    try:
        first = json.loads(content)["data"][0]
        encoded, link = first.get("b64_json"), first.get("url")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Unusable("no JSON with an image") from None
    if not encoded and link:
        raise InputError(
            "generator: the service answers with links, which expire; set parameters: "
            "{response_format: b64_json} in generator.random and generator.vary"
        )
    try:
        image = images.decode_image(base64.b64decode(encoded, validate=True), channels)
    except (ValueError, TypeError, images.Unusable):
        raise Unusable("an image that can't be decoded") from None
    if image.shape[:2] != (size, size):
        raise InputError(
            f"generator: the service answers with {image.shape[0]}x{image.shape[1]} images instead "
            f"of {size}x{size}; give a size that its model makes"
        )
    return image

"""Generators behind paid services: what is asked for each row, and the image in an answer.

A service's own module says what is sent and where an answer has its image (fal.py is the shortest).
service_client.py does the asking.
"""

from __future__ import annotations

import base64
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.generators.captions import Captions
from pe_ray.components.generators.service_client import Call, Refused, ServiceClient, Unusable
from pe_ray.components.generators.service_options import ServiceOptions, shape_of
from pe_ray.errors import InputError
from pe_ray.files import images
from pe_ray.files.png import encode_png
from pe_ray.plugins import Rows
from pe_ray.plugins.seeds import Seeds
from pe_ray.values import Framing, ImageShape


class ImageService(ABC):
    """A generator behind a service, which gets prompts and synthetic images, nothing else.

    A row's image depends on its seed alone: the store keeps the first answer to a call as its only
    one, and the row's seed is part of its key.
    """

    scheme: ClassVar[str] = "Bearer"
    """What the header Authorization puts before the key."""

    def __init__(self, options: ServiceOptions, label_names: Sequence[str]) -> None:
        self._options = options
        self._captions = Captions(options, label_names)
        self._client = ServiceClient(options, "generator", self.scheme)

    @abstractmethod
    def draw(self, prompt: str, seed: int) -> Call:
        """Return the call for a random draw; seed: 31 bits."""

    @abstractmethod
    def redraw(self, prompt: str, seed: int, image: bytes, degree: float) -> Call:
        """Return the call for a variation of an image: PNG, RGB, of the size in `vary`."""

    @abstractmethod
    def find_image(self, answer: Any) -> str:
        """Return what decoded JSON has for an image: base64, a data URI or a link."""

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Ask for a draw with each label's prompt, or a caption of it."""
        prompts = self._captions.draw(labels, seeds)
        made = self._client.ask_all(self._draw, prompts, seeds.tolist())
        return self._captions.add_to({"image": np.stack(made)}, prompts)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Ask for a variation of each row: of its image, or with captions of its caption."""
        prompts = self._captions.vary(rows, degree, seeds)
        varied = [None] * len(seeds) if self._options.redraws else list(rows["image"])
        degrees = [degree] * len(seeds)
        made = self._client.ask_all(self._vary, prompts, seeds.tolist(), varied, degrees)
        for row, image in enumerate(made):
            if image is None:  # refused: the row stays as it was
                made[row], prompts[row] = rows["image"][row], self._captions.of(rows, row)
        return self._captions.add_to({"image": np.stack(made)}, prompts)

    def _draw(self, prompt: str, seed: int, stop: threading.Event) -> NDArray[np.uint8]:
        made = self._ask(self.draw(prompt, seed >> 33), prompt, seed, stop)
        assert made is not None
        return made

    def _vary(
        self,
        prompt: str,
        seed: int,
        varied: NDArray[np.uint8] | None,
        degree: float,
        stop: threading.Event,
    ) -> NDArray[np.uint8] | None:
        keep = self._options.on_refusal == "keep"
        if varied is None:
            return self._ask(self.draw(prompt, seed >> 33), prompt, seed, stop, keep=keep)
        shape = shape_of(self._options.vary.size)
        rgb = np.broadcast_to(_fit(varied, shape), (shape.height, shape.width, 3))
        call = self.redraw(prompt, seed >> 33, encode_png(rgb), degree)
        return self._ask(call, prompt, seed, stop, keep=keep, is_draw=False)

    def _ask(
        self,
        call: Call,
        prompt: str,
        row_seed: int,
        stop: threading.Event,
        *,
        keep: bool = False,
        is_draw: bool = True,
    ) -> NDArray[np.uint8] | None:
        """Return the image that a call is answered with; None if it is refused and `keep`."""
        options = self._options
        price = options.price.random if is_draw else options.price.vary
        shape = shape_of((options.random if is_draw else options.vary).size)
        with self._client.ask(call, row_seed, price, stop) as (key, outcome, content):
            if outcome == "answered":
                try:
                    return _fit(self._decode(key, content, shape), options.image_shape)
                except Refused as error:
                    content = str(error).encode()
            else:
                self._client.calls.settle(key, "refused" if keep else "free", content)
        if keep:
            return None
        raise InputError(
            f"generator.prompt: the service's content policy refused {call.path} for the prompt "
            f"{prompt!r} ({content.decode()}); change the prompt, or for variations set "
            "generator.on_refusal: keep"
        )

    def _decode(self, key: str, content: bytes, shape: ImageShape) -> NDArray[np.uint8]:
        """Return the image of a stored answer. What a link leads to is stored in its place."""
        try:
            found = ""
            if content.lstrip().startswith(b"{"):
                found = self.find_image(json.loads(content))
            if found.startswith(("http://", "https://")):
                content, found = self._client.fetch(found), ""
                self._client.calls.settle(key, "answered", content)
            # Perhaps a data URI; line breaks are passed over.
            encoded = base64.b64decode(found.rpartition(",")[2]) if found else content
            image = images.decode_image(encoded, self._options.channels)
        except InputError:
            raise
        except (images.Unusable, ValueError, LookupError, TypeError, AttributeError):
            message = self._client.read_message(content)
            raise Unusable(f"no image that can be read ({message})") from None
        if image.shape[:2] != (shape.height, shape.width):
            given, wanted = image.shape[1::-1], (shape.width, shape.height)
            raise Unusable("an image of {}x{}, not {}x{}".format(*given, *wanted))
        return image


def _fit(image: NDArray[np.uint8], shape: ImageShape) -> NDArray[np.uint8]:
    """Cut and resize an image to the height and width of `shape`."""
    target = ImageShape(height=shape.height, width=shape.width, channels=image.shape[2])
    return images.fit_image(image, Framing(shape=target))

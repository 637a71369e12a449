"""Calls to an image service over HTTP: what to send, what came of it, and when to try again.

Retries are written out here: whether a failed attempt may have been paid for decides what is
counted, and neither a client library's retries nor a retry package can tell.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import requests
import urllib3
from urllib3.exceptions import ConnectTimeoutError, InvalidHeader, NewConnectionError

from pe_ray.components.generators.paid_calls import Outcome, PaidCalls
from pe_ray.errors import InputError

T = TypeVar("T")

_FIRST_WAIT = 1.0  # seconds before the second attempt; doubled for each further one
_LONGEST_WAIT = 60.0
_LONGEST_HOLD = 3600.0  # if a service asks to wait for longer, the run ends


class Unusable(Exception):
    """An answer that holds no image."""


class Stopped(Exception):
    """Another call of the batch failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRequest:
    """A request for one image. image: PNG bytes to vary, None to draw from a prompt.

    row_seed is part of the key and is not sent: no service of this kind takes one.
    """

    endpoint: Literal["generations", "variations", "edits"]
    fields: Mapping[str, str | int | float | bool]
    image: bytes | None
    row_seed: int
    price: float

    def key(self, base_url: str) -> str:
        """Return SHA-256 (hex) of all that the answer depends on, and of the row's seed."""
        image = None if self.image is None else hashlib.sha256(self.image).hexdigest()
        parts = [base_url, self.endpoint, sorted(self.fields.items()), image, self.row_seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Reply:
    """What came of one attempt: an answer's body, or why there is none.

    wait: seconds that the service asks to wait.
    """

    outcome: Outcome
    content: bytes = b""
    reason: str = ""
    wait: float | None = None


@dataclass(kw_only=True)
class ImageService:
    """A service, asked through a store: what is answered there is never asked again."""

    calls: PaidCalls
    base_url: str
    api_key_env: str | None
    timeout: float
    attempts: int
    requests_per_minute: float | None

    def __post_init__(self) -> None:
        self._api_key = _read_key(self.api_key_env) if self.api_key_env else None
        self._interval = 60.0 / self.requests_per_minute if self.requests_per_minute else 0.0

    def ask(
        self,
        request: ServiceRequest,
        decode: Callable[[bytes], T],
        stop: threading.Event,
        *,
        keep_refusals: bool,
    ) -> T | None:
        """Return what `decode` makes of the answer; None if it was refused and refusals are kept.

        `decode` gets bytes that are stored already, and raises Unusable if they hold no image. The
        service is asked again then, as after a failure that may pass, `attempts` times in all.
        """
        key = request.key(self.base_url)
        with self.calls.claim(key):
            for failed in range(1, self.attempts + 1):
                stored = self.calls.find(key)
                reply = _Reply(*stored) if stored else self._attempt(request, key, stop)
                if reply.outcome == "answered":
                    try:
                        return decode(reply.content)
                    except Unusable as error:
                        reply = _Reply("bad", reason=str(error))
                if reply.outcome == "refused":
                    if keep_refusals:
                        self.calls.settle(key, "refused", reply.content)
                        return None
                    self.calls.settle(key, "free")
                    raise InputError(
                        f"generator.prompt: the service's content policy refused {request.endpoint}"
                        f" for the prompt {request.fields.get('prompt')!r} "
                        f"({reply.content.decode()}); change the prompt, or for variations set "
                        "generator.on_refusal: keep"
                    )
                self.calls.settle(key, reply.outcome)
                if failed < self.attempts:
                    self._back_off(reply, failed, stop)
        raise InputError(
            f"generator: the service failed {failed} times in a row for one image (last: "
            f"{reply.reason}); run the same command later to go on (what was answered is kept)"
        )

    def _attempt(self, request: ServiceRequest, key: str, stop: threading.Event) -> _Reply:
        """Make one call. Its answer is stored, and it is forgotten if it was turned down."""
        _sleep(self.calls.take_turn(self._interval), stop)
        self.calls.enter(key, request.price)
        try:
            reply = self._post(request)
        except InputError:
            self.calls.settle(key, "free")
            raise
        if reply.outcome == "answered":
            self.calls.settle(key, "answered", reply.content)
        return reply

    def _post(self, request: ServiceRequest) -> _Reply:
        sent: dict[str, Any] = {"json": dict(request.fields)}
        if request.image is not None:
            fields = request.fields.items()
            form = {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields}
            sent = {"data": form, "files": {"image": ("image.png", request.image, "image/png")}}
        try:
            response = requests.post(
                f"{self.base_url}/images/{request.endpoint}",
                auth=self._add_key,
                timeout=self.timeout,
                allow_redirects=False,
                **sent,
            )
        except requests.exceptions.RequestException as error:
            cause = getattr(next(iter(error.args), None), "reason", None)
            unsent = isinstance(cause, NewConnectionError | ConnectTimeoutError)
            # Its text may quote headers or a proxy's password; its type is enough.
            return _Reply("free" if unsent else "unknown", reason=type(error).__name__)
        return self._read(response)

    def _add_key(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key. As this is the request's `auth`, no key of a .netrc file is sent."""
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request

    def _read(self, response: requests.Response) -> _Reply:
        """Return the reply in an HTTP answer; InputError if asking again would not help."""
        status = response.status_code
        if status == 200:
            return _Reply("answered", response.content)
        if status in (401, 403):  # a body may quote part of the key: it isn't shown
            what = f"the key in {self.api_key_env}" if self.api_key_env else "a call without a key"
            raise InputError(
                f"generator.api_key_env: the service at {self.base_url} refused {what} ({status}); "
                "give one that may make images"
            )
        code, message = self._read_error(response.content)
        if status == 400 and any(word in code for word in ("content_policy", "moderation")):
            return _Reply("refused", code.encode())
        if status == 429 and code not in ("insufficient_quota", "billing_hard_limit_reached"):
            return _Reply("free", reason="429", wait=_retry_after(response))
        if status >= 500 or status == 408:
            return _Reply("unknown", reason=str(status), wait=_retry_after(response))
        raise InputError(
            f"generator: the service at {self.base_url} turned a call down ({status}"
            f"{': ' if message else ''}{message}); correct the options that it names"
        )

    def _read_error(self, body: bytes) -> tuple[str, str]:
        """Return the code and the message of an error in the OpenAI format, or blanks."""
        try:
            error = json.loads(body)["error"]
            code, message = str(error.get("code") or ""), str(error.get("message") or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            return "", ""
        message = " ".join(message.split())[:200]
        return code, message.replace(self._api_key, "(key)") if self._api_key else message

    def _back_off(self, reply: _Reply, failed: int, stop: threading.Event) -> None:
        """Wait before the next attempt, longer each time.

        If the service says how long, the next turn of every worker waits so long instead.
        """
        if reply.wait is None:
            longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (failed - 1))
            _sleep(longest * random.uniform(0.5, 1.0), stop)
        elif reply.wait > _LONGEST_HOLD:
            raise InputError(
                f"generator: the service asks to wait {reply.wait:,.0f} s; run the same command "
                "then (what was answered is kept)"
            )
        else:
            self.calls.hold(reply.wait)


def _sleep(seconds: float, stop: threading.Event) -> None:
    if stop.wait(seconds):
        raise Stopped


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key and key.isascii() and key.isprintable() and " " not in key):
        raise InputError(
            f"generator.api_key_env: the environment variable {variable} holds no key where Ray's "
            "workers run; set it there before Ray starts"
        )
    return key


def _retry_after(response: requests.Response) -> float | None:
    """Return the seconds in Retry-After, a number or a date; None without one."""
    value = response.headers.get("Retry-After")
    try:
        return None if value is None else urllib3.Retry().parse_retry_after(value)
    except InvalidHeader:
        return None

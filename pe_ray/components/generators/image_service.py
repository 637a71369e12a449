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
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

import requests

from pe_ray.components.generators.paid_calls import Outcome, PaidCalls
from pe_ray.errors import InputError

Field = str | int | float | bool
T = TypeVar("T")

_FIRST_WAIT = 1.0  # seconds before the second attempt; doubled for each further one
_LONGEST_WAIT = 60.0
_LONGEST_HOLD = 3600.0  # if a service asks to wait for longer, the run ends
_POLL = 0.1  # seconds between looks at a call that another worker makes
_CONNECT_SECONDS = 20.0
_MOST_BYTES = 64 << 20


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
    fields: Mapping[str, Field]
    image: bytes | None
    row_seed: int
    price: float

    def key(self, base_url: str) -> str:
        """Return SHA-256 (hex) of all that the answer depends on, and of the row's seed."""
        image = None if self.image is None else hashlib.sha256(self.image).hexdigest()
        parts = [base_url, self.endpoint, sorted(self.fields.items()), image, self.row_seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """What came of one attempt, and how the store counts it.

    unknown: a failure that may pass and may have been paid for; free: one that was not paid for.
    content: an answer's body. wait: seconds that the service asks to wait.
    """

    outcome: Outcome
    content: bytes = b""
    reason: str = ""
    wait: float | None = None


class _Bearer:
    """Adds the key to each request; without one, no key of a .netrc file is sent either."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key

    def __call__(self, request: Any) -> Any:
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


class ImageService:
    """A service, asked through a store: what is answered there is never asked again."""

    def __init__(
        self,
        calls: PaidCalls,
        *,
        base_url: str,
        api_key_env: str | None,
        timeout: float,
        attempts: int,
        requests_per_minute: float | None,
    ) -> None:
        self._api_key = None if api_key_env is None else _read_key(api_key_env)
        self._calls = calls
        self._api_key_env = api_key_env
        self._base_url = base_url
        self._timeout = timeout
        self._attempts = attempts
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._local = threading.local()

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
        for failed in range(1, self._attempts + 1):
            call, reply = self._answer(request, stop, keep_refusals)
            if reply.outcome == "answered":
                try:
                    return decode(reply.content)
                except (Unusable, InputError) as error:
                    self._calls.settle(call, "bad")
                    if isinstance(error, InputError):
                        raise
                    reply = _Reply(outcome="bad", reason=str(error))
            elif reply.outcome == "refused":
                if keep_refusals:
                    return None
                raise InputError(
                    f"generator.prompt: the service's content policy refused {request.endpoint} "
                    f"for the prompt {request.fields.get('prompt')!r} ({reply.reason}); change the "
                    "prompt, or for variations set generator.on_refusal: keep"
                )
            if failed < self._attempts:
                self._back_off(reply, failed, stop)
        raise InputError(
            f"generator: the service failed {failed} times in a row for one image (last: "
            f"{reply.reason}); run the same command later to go on (what was answered is kept)"
        )

    def _answer(
        self, request: ServiceRequest, stop: threading.Event, keep_refusals: bool
    ) -> tuple[int, _Reply]:
        """Return the stored reply to `request`, or that of one attempt; and the call's number."""
        key = request.key(self._base_url)
        while True:
            stored = self._calls.find(key)
            if stored is None:
                self._sleep(self._calls.take_turn(self._interval), stop)
                call = self._calls.claim(key, request.price)
                if call is not None:  # else another was faster
                    return call, self._attempt(call, request, keep_refusals)
            elif stored.state == "answered":
                return stored.call, _Reply(outcome="answered", content=stored.content)
            elif stored.state == "refused":
                return stored.call, _Reply(outcome="refused", reason=stored.content.decode())
            else:
                self._sleep(_POLL, stop)

    def _attempt(self, call: int, request: ServiceRequest, keep_refusals: bool) -> _Reply:
        """Make one attempt; whatever happens, the store learns of it."""
        try:
            reply = self._post(request)
        except InputError:
            self._calls.settle(call, "free")
            raise
        except BaseException:
            self._calls.settle(call, "unknown")
            raise
        if reply.outcome == "refused":
            self._calls.settle(call, "refused" if keep_refusals else "free", reply.reason.encode())
        else:
            self._calls.settle(call, reply.outcome, reply.content or None)
        return reply

    def _post(self, request: ServiceRequest) -> _Reply:
        sent: dict[str, Any] = {"json": dict(request.fields)}
        if request.image is not None:
            form = {
                name: str(value).lower() if isinstance(value, bool) else str(value)
                for name, value in request.fields.items()
            }
            sent = {"data": form, "files": {"image": ("image.png", request.image, "image/png")}}
        deadline = time.monotonic() + self._timeout
        try:
            with self._session().post(
                f"{self._base_url}/images/{request.endpoint}",
                auth=_Bearer(self._api_key),
                timeout=(min(_CONNECT_SECONDS, self._timeout), self._timeout),
                allow_redirects=False,
                stream=True,
                **sent,
            ) as response:
                body = bytearray()
                for chunk in response.iter_content(1 << 16):
                    body += chunk
                    if time.monotonic() > deadline:
                        raise requests.exceptions.ReadTimeout
                    if len(body) > _MOST_BYTES:
                        return _Reply(outcome="unknown", reason="an answer without end")
                return self._read(response.status_code, response.headers, bytes(body))
        except requests.exceptions.RequestException as error:
            unsent = isinstance(error, requests.exceptions.ConnectTimeout) or (
                type(getattr(error.args[0] if error.args else None, "reason", None)).__name__
                in ("NewConnectionError", "NameResolutionError")
            )
            # Its text may quote headers or a proxy's password; its type is enough.
            return _Reply(outcome="free" if unsent else "unknown", reason=type(error).__name__)

    def _session(self) -> requests.Session:
        """Return this thread's session; requests doesn't promise that threads can share one."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        session: requests.Session = self._local.session
        return session

    def _read(self, status: int, headers: Mapping[str, str], body: bytes) -> _Reply:
        """Return the reply in an HTTP answer; InputError if asking again would not help."""
        if status == 200:
            return _Reply(outcome="answered", content=body)
        if status in (401, 403):  # a body may quote part of the key: it isn't shown
            what = "" if self._api_key_env is None else f" the key in {self._api_key_env}"
            raise InputError(
                f"generator.api_key_env: the service at {self._base_url} refused"
                f"{what or ' a call without a key'} ({status}); give one that may make images"
            )
        code, message = self._read_error(body)
        if status == 400 and any(word in code for word in ("content_policy", "moderation")):
            return _Reply(outcome="refused", reason=code)
        if status == 429 and code not in ("insufficient_quota", "billing_hard_limit_reached"):
            return _Reply(outcome="free", reason="429", wait=_retry_after(headers))
        if status >= 500 or status == 408:
            return _Reply(outcome="unknown", reason=str(status), wait=_retry_after(headers))
        raise InputError(
            f"generator: the service at {self._base_url} turned a call down ({status}"
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
            self._sleep(longest * random.uniform(0.5, 1.0), stop)
        elif reply.wait > _LONGEST_HOLD:
            raise InputError(
                f"generator: the service asks to wait {reply.wait:,.0f} s; run the same command "
                "then (what was answered is kept)"
            )
        else:
            self._calls.hold(reply.wait)

    def _sleep(self, seconds: float, stop: threading.Event) -> None:
        if stop.wait(max(0.0, seconds)):
            raise Stopped


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key and key.isascii() and key.isprintable() and " " not in key):
        raise InputError(
            f"generator.api_key_env: the environment variable {variable} holds no key where Ray's "
            "workers run; set it there before Ray starts"
        )
    return key


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in Retry-After: a number, or a date (RFC 9110, section 10.2.3)."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None

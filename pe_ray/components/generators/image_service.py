"""Calls to an image service over HTTP: what to send, what came of it, and when to try again.

`requests` carries them. Retries are written out here, since whether an attempt may have been paid
for decides what is counted: neither a client library's own retries nor a retry package can tell.
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

from pe_ray.components.generators.paid_calls import Answer, PaidCalls
from pe_ray.errors import InputError

Field = str | int | float | bool
Made = TypeVar("Made")

_FIRST_WAIT = 1.0  # seconds before the second attempt; doubled for each further one
_LONGEST_WAIT = 60.0
_LONGEST_HOLD = 3600.0  # a service that wants to be left alone for longer ends the run
_POLL = 0.1  # seconds between looks at a call that another worker makes
_CONNECT_SECONDS = 20.0
_MOST_BYTES = 64 << 20


class Unusable(Exception):
    """An answer that holds no image."""


class Stopped(Exception):
    """Another call of the batch failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRequest:
    """One image asked for. image: PNG bytes to vary, None to draw from a prompt.

    row_seed is not sent: no service of this kind takes one. It is part of the key.
    """

    endpoint: Literal["generations", "variations", "edits"]
    fields: Mapping[str, Field]
    image: bytes | None
    row_seed: int
    price: float

    def key(self, base_url: str) -> str:
        """SHA-256 (hex) of all that the answer depends on, and of the row's seed."""
        image = None if self.image is None else hashlib.sha256(self.image).hexdigest()
        parts = [base_url, self.endpoint, sorted(self.fields.items()), image, self.row_seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """What came of one attempt. paid: whether the service may charge for it."""

    kind: Literal["answer", "refused", "again", "stop"]
    paid: bool
    content: bytes = b""
    reason: str = ""
    wait: float | None = None


class _Bearer:
    """Adds the key. Given to every request, so that no key of a .netrc file is sent either."""

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
        self._api_key = None if api_key_env is None else _key_from(api_key_env)
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
        use: Callable[[bytes], Made],
        stop: threading.Event,
        *,
        keep_refusals: bool,
    ) -> Made | None:
        """What `use` makes of the answer to `request`; None where it was refused and kept.

        `use` reads bytes that are stored already, and raises Unusable where they hold no image:
        then, as after a failure that may pass, the service is asked again, `attempts` times in all.
        """
        key = request.key(self._base_url)
        reason, failed = "", 0
        while failed < self._attempts:
            known = self._calls.answer(key)
            if known is not None:
                call, reply = known.call, _known(known)
            elif self._calls.under_way(key):
                self._sleep(_POLL, stop)
                continue
            else:
                self._sleep(self._calls.turn(self._interval), stop)
                claimed = self._calls.claim(key, request.price)
                if claimed is None:  # another was faster
                    continue
                call, reply = claimed, self._attempt(claimed, request, keep_refusals)
            if reply.kind == "answer":
                try:
                    return use(reply.content)
                except Unusable as error:
                    self._calls.reject(call)
                    reply = _Reply(kind="again", paid=True, reason=str(error))
                except InputError:
                    self._calls.reject(call)
                    raise
            elif reply.kind == "stop":
                raise InputError(reply.reason)
            elif reply.kind == "refused":
                if keep_refusals:
                    return None
                raise InputError(
                    f"generator.prompt: the service's content policy refused {request.endpoint} "
                    f"for the prompt {request.fields.get('prompt')!r} ({reply.reason}); change the "
                    "prompt, or for variations set generator.on_refusal: keep"
                )
            failed, reason = failed + 1, reply.reason
            if failed < self._attempts:
                self._back_off(reply, failed, stop)
        raise InputError(
            f"generator: the service failed {failed} times in a row for one image (last: "
            f"{reason}); run the same command later to go on (what was answered is kept)"
        )

    def _attempt(self, call: int, request: ServiceRequest, keep_refusals: bool) -> _Reply:
        """One attempt, entered in the store whatever happens."""
        try:
            reply = self._post(request)
        except BaseException:
            self._calls.settle(call, "unknown")
            raise
        if reply.kind == "answer":
            self._calls.settle(call, "answered", reply.content)
        elif reply.kind == "refused" and keep_refusals:
            self._calls.settle(call, "refused", reply.reason.encode())
        elif reply.paid:
            self._calls.settle(call, "unknown")
        else:
            self._calls.withdraw(call)
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
                        return _Reply(kind="again", paid=True, reason="an answer without end")
                return self._reply(response.status_code, response.headers, bytes(body))
        except requests.exceptions.RequestException as error:
            sent_nothing = isinstance(error, requests.exceptions.ConnectTimeout) or (
                type(getattr(error.args[0] if error.args else None, "reason", None)).__name__
                in ("NewConnectionError", "NameResolutionError")
            )
            # Its text may quote headers or a proxy's password; its type says enough.
            return _Reply(kind="again", paid=not sent_nothing, reason=type(error).__name__)

    def _session(self) -> requests.Session:
        """One per thread: requests promises nothing about sharing them."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        session: requests.Session = self._local.session
        return session

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes) -> _Reply:
        if status == 200:
            return _Reply(kind="answer", paid=True, content=body)
        if status in (401, 403):  # a body may quote part of the key: it isn't shown
            what = "" if self._api_key_env is None else f" the key in {self._api_key_env}"
            return _Reply(
                kind="stop",
                paid=False,
                reason=f"generator.api_key_env: the service at {self._base_url} refused"
                f"{what or ' a call without a key'} ({status}); give one that may make images",
            )
        code, message = self._error(body)
        if status == 400 and any(word in code for word in ("content_policy", "moderation")):
            return _Reply(kind="refused", paid=False, reason=code)
        if status == 429 and code not in ("insufficient_quota", "billing_hard_limit_reached"):
            return _Reply(kind="again", paid=False, reason="429", wait=_retry_after(headers))
        if status >= 500 or status == 408:
            return _Reply(kind="again", paid=True, reason=str(status), wait=_retry_after(headers))
        return _Reply(
            kind="stop",
            paid=False,
            reason=f"generator: the service at {self._base_url} turned a call down ({status}"
            f"{': ' if message else ''}{message}); mend the options that it names",
        )

    def _error(self, body: bytes) -> tuple[str, str]:
        """The code and the message of an error in the OpenAI format; blank where it has none."""
        try:
            error = json.loads(body)["error"]
            code, message = str(error.get("code") or ""), str(error.get("message") or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            return "", ""
        message = " ".join(message.split())[:200]
        return code, message.replace(self._api_key, "(key)") if self._api_key else message

    def _back_off(self, reply: _Reply, failed: int, stop: threading.Event) -> None:
        """Wait as long as the service asks, and let all workers wait; else longer every time."""
        if reply.wait is not None:
            if reply.wait > _LONGEST_HOLD:
                raise InputError(
                    f"generator: the service asks to wait {reply.wait:,.0f} s; run the same "
                    "command then (what was answered is kept)"
                )
            self._calls.hold(reply.wait)  # the next turn waits
        else:
            longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (failed - 1))
            self._sleep(longest * random.uniform(0.5, 1.0), stop)

    def _sleep(self, seconds: float, stop: threading.Event) -> None:
        if stop.wait(max(0.0, seconds)):
            raise Stopped


def _known(stored: Answer) -> _Reply:
    if stored.state == "refused":
        return _Reply(kind="refused", paid=False, reason=stored.content.decode())
    return _Reply(kind="answer", paid=True, content=stored.content)


def _key_from(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(
            f"generator.api_key_env: the environment variable {variable} is not set where Ray's "
            "workers run; set it there before Ray starts"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"generator.api_key_env: what is in {variable} is no key; set it again")
    return key


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the service asks to wait: a number, or a date (RFC 9110, section 10.2.3)."""
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

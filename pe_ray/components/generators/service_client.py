"""Calls to a paid service: asking, waiting, trying again, and what came of it.

The HTTP is the openai client's, without its retries: whether a failed attempt may have been paid
for decides what is counted, so each attempt is made here.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pe_ray.components.generators.paid_calls import Outcome, PaidCalls
from pe_ray.components.generators.service_account import AccountOptions, is_safe
from pe_ray.errors import InputError

if TYPE_CHECKING:
    import httpx2
    from openai import OpenAI

_FIRST_WAIT = 1.0  # seconds before the second attempt; doubled for each further one
_LONGEST_WAIT = 60.0
_LONGEST_HOLD = 3600.0  # if a service asks to wait for longer, the run ends
_REFUSED = re.compile(  # OpenAI, Azure (also nested), fal, Stability; LiteLLM names its exception
    rb'"(?:code|type|name)"\s*:\s*"[^"]*(?:content_?policy|content_?filter|moderation'
    rb"|ResponsibleAIPolicy)|ContentPolicyViolationError",
    re.IGNORECASE,
)
_UNPAID = re.compile(rb'"(?:code|type)"\s*:\s*"(?:insufficient_quota|billing_hard_limit_reached)"')
_KEY_PIECE = 6  # characters of a key that no message may show
_LONGEST_MESSAGE = 300


class Refused(Exception):
    """An answer, paid for, that says that the content policy refused."""


class Unusable(Exception):
    """An answer that doesn't hold what was asked for."""


class _Stopped(Exception):
    """Another call of the batch failed."""


class Call(NamedTuple):
    """A call for one image: JSON, or a form if a PNG file is uploaded as its field `image`."""

    path: str
    fields: Mapping[str, Any]
    upload: bytes = b""


class ServiceClient:
    """A client of one service. Its store keeps the first answer to a key as the only one.

    field: of the configuration, where the options stand. scheme: what the header Authorization
    puts before the key.
    """

    def __init__(self, options: AccountOptions, field: str, scheme: str = "Bearer") -> None:
        self._options, self._field = options, field
        self._key = read_key(options.api_key_env, field)
        authorization = f"{scheme} {self._key}" if self._key else ""
        self._client = connect(options.base_url, authorization, options.timeout)
        self._links = connect(options.base_url, "", options.timeout, options.attempts - 1)
        self.calls = PaidCalls(
            Path(options.store), max_calls=options.max_calls, max_cost=options.max_cost, field=field
        )

    def ask_all(self, ask: Callable[..., Any], *rows: Iterable[Any]) -> list[Any]:
        """Return `ask(row..., stop)` of each row, `concurrency` at once. An error stops all."""
        stop = threading.Event()
        errors: list[BaseException] = []

        def ask_one(*row: Any) -> Any:
            try:
                return ask(*row, stop)
            except BaseException as error:
                errors.append(error)
                stop.set()

        with ThreadPoolExecutor(self._options.concurrency) as pool:
            try:
                made = list(pool.map(ask_one, *rows))
            finally:
                stop.set()
        if errors:
            raise errors[0]
        return made

    @contextmanager
    def ask(
        self, call: Call, row_seed: int, price: float, stop: threading.Event
    ) -> Iterator[tuple[str, Outcome, bytes]]:
        """Give a call's key and what came of it, stored or paid for now; hold the key meanwhile.

        The key is everything sent and the row's seed. An answer that proves Unusable ends the run.
        """
        parts = [self._options.base_url, call.path, sorted(call.fields.items()), row_seed]
        key = hashlib.sha256(json.dumps(parts).encode() + call.upload).hexdigest()
        with self.calls.claim(key):
            outcome, content = self.calls.find(key) or self._pay(call, key, price, stop)
            try:
                yield key, outcome, content
            except Unusable as error:
                self.calls.settle(key, "bad")
                raise InputError(
                    f"{self._field}: the service at {self._options.base_url} answered with "
                    f"{error}; correct the options (the call was paid for, so it isn't made again)"
                ) from None

    def _pay(
        self, call: Call, key: str, price: float, stop: threading.Event
    ) -> tuple[Outcome, bytes]:
        """Return the answer, stored already, or the reason of a refusal, which is not."""
        import httpx2
        import openai

        attempts, per_minute = self._options.attempts, self._options.requests_per_minute
        for failed in range(1, attempts + 1):
            _sleep(self.calls.take_turn(60.0 / per_minute if per_minute else 0.0), stop)
            self.calls.enter(key, price)
            outcome: Outcome
            try:
                answer = self._post(call)
            except openai.APIStatusError as error:
                outcome, reason = self._judge(key, error.response)
                wait = _retry_after(error.response)
            except openai.APIConnectionError as error:
                # Its text may quote headers or a proxy's password; its type is enough.
                reason, wait = type(error.__cause__).__name__, None
                unsent = isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)
                outcome = "free" if unsent else "unknown"
            else:
                self.calls.settle(key, "answered", answer)
                return "answered", answer
            if outcome == "refused":
                return outcome, reason.encode()
            self.calls.settle(key, outcome)
            if failed < attempts:
                self._back_off(wait, failed, stop)
        raise InputError(
            f"{self._field}: the service failed {attempts} times in a row for one answer (last: "
            f"{reason}); run the same command later to go on (what was answered is kept)"
        )

    def _post(self, call: Call) -> bytes:
        import httpx2

        form: Any = {}
        if call.upload:
            form["files"] = {"image": ("image.png", call.upload, "image/png")}
            form["options"] = {"headers": {"Content-Type": "multipart/form-data"}}
        body, kind = dict(call.fields), httpx2.Response
        response: httpx2.Response = self._client.post(call.path, cast_to=kind, body=body, **form)
        return response.content

    def _judge(self, key: str, response: httpx2.Response) -> tuple[Outcome, str]:
        """Return what an error means and says; raise InputError if asking again can't help."""
        status, body = response.status_code, response.content
        message = f"{status}: {self.read_message(body)}"
        if 400 <= status < 500 and _REFUSED.search(body):
            return "refused", message
        if status == 429 and not _UNPAID.search(body):
            return "free", message
        if status >= 500 or status == 408:
            return "unknown", message
        self.calls.settle(key, "free")
        field = f".api_key_env ({self._options.api_key_env})" if status in (401, 403) else ""
        raise InputError(
            f"{self._field}{field}: the service at {self._options.base_url} turned a call down "
            f"({message}); correct what it names"
        ) from None  # the client's error quotes the key's piece

    def fetch(self, link: str) -> bytes:
        """Return what a link in an answer leads to, without a key. That costs nothing."""
        import httpx2
        import openai

        if not is_safe(link):
            raise Unusable("a link that is not https")
        try:
            return self._links.get(link, cast_to=httpx2.Response).content
        except openai.APIError as error:
            status = getattr(error, "status_code", 500)
            if status < 500 and status not in (408, 429):
                raise Unusable(f"a link that leads to nothing ({status})") from None
            raise InputError(
                f"{self._field}: a link in an answer can't be fetched ({type(error).__name__}); "
                "run the same command later to go on (the answer is kept)"
            ) from None

    def _back_off(self, wait: float | None, failed: int, stop: threading.Event) -> None:
        """Wait longer each time, or let every worker's next call wait as long as is asked."""
        if wait is None:
            longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (failed - 1))
            return _sleep(longest * random.uniform(0.5, 1.0), stop)
        if wait > _LONGEST_HOLD:
            raise InputError(
                f"{self._field}: the service asks to wait {wait:,.0f} s; run the same command then "
                "(what was answered is kept)"
            )
        self.calls.hold(wait)

    def read_message(self, body: bytes) -> str:
        """Return what an error says in one of the usual forms, or how the body begins.

        Services quote keys: words that hold a piece of the key are left out.
        """
        try:
            found = text = body.decode()
            found = json.loads(text)
        except UnicodeDecodeError:
            return f"{len(body):,} bytes"
        except ValueError:
            pass
        for name in ("error", "detail", "errors", "message", "msg"):
            found = found[0] if isinstance(found, list) and found else found
            found = (found.get(name) or found) if isinstance(found, Mapping) else found
        words = (found if isinstance(found, str) else json.dumps(found)).split()
        key = self._key
        pieces = {key[at : at + _KEY_PIECE] for at in range(len(key) - _KEY_PIECE + 1)}
        shown = ["(key)" if any(piece in word for piece in pieces) else word for word in words]
        return " ".join(shown)[:_LONGEST_MESSAGE]


def connect(base_url: str, authorization: str, timeout: float, retries: int = 0) -> OpenAI:
    """Return a client that follows no redirect and sends no other key than this, if any."""
    import openai

    def set_key(request: httpx2.Request) -> None:
        request.headers.pop("Authorization", None)
        if authorization:
            request.headers["Authorization"] = authorization

    http = openai.DefaultHttpxClient(
        follow_redirects=False, timeout=timeout, event_hooks={"request": [set_key]}
    )
    return openai.OpenAI(
        base_url=base_url,
        api_key="set later",
        max_retries=retries,
        timeout=timeout,
        http_client=http,
    )


def read_key(variable: str | None, field: str = "generator") -> str:
    """Return the key in an environment variable; blank if there is to be none."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not re.fullmatch("[!-~]+", key):
        raise InputError(
            f"{field}.api_key_env: the environment variable {variable} holds no key where Ray's "
            "workers run; set it there before Ray starts"
        )
    return key


def _retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds in Retry-After, a number or a date; None without one."""
    value = response.headers.get("Retry-After", "")
    try:
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _sleep(seconds: float, stop: threading.Event) -> None:
    if stop.wait(seconds):
        raise _Stopped

"""A local image service with the OpenAI images interface (and fal's, at other paths), the faults
that real ones have, and generators that call it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pe_ray.components.generators.fal import Fal, FalOptions
from pe_ray.components.generators.image_api import ImageApi, ImageApiOptions
from pe_ray.components.generators.local_service import answer, chat, draw, read_call
from pe_ray.plugins.seeds import row_seeds

KEY = "sk-test-not-a-real-key-31415926"

NAMES = ("cat", "dog")
LABELS = np.array([0, 1, 1, 0], dtype=np.int32)
ROWS = np.arange(4, dtype=np.int64)
SEEDS = row_seeds(1, "random", 0, ROWS)
VARIED = row_seeds(1, "variation", 1, ROWS)

Fault = Callable[["Handler"], bool]
"""Answers in the place of the service; False: let it answer."""


@dataclass
class Call:
    """What the service was sent."""

    endpoint: str
    fields: dict[str, str]
    image: np.ndarray | None
    headers: dict[str, str]
    body: bytes
    sent: dict[str, Any]
    at: float = field(default_factory=time.monotonic)


@dataclass
class Service:
    """Calls so far, faults to come (one each, in order), and what was drawn.

    models: name -> when it will be shut down. linked: what LINK leads to; blank: nothing.
    """

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    drawn: list[np.ndarray] = field(default_factory=list)
    models: dict[str, str | None] = field(default_factory=lambda: {"tiny": None})
    linked: bytes = b""
    asked_for_links: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    delay: float = 0.0
    lock: Any = field(default_factory=threading.Lock)
    at_once: int = 0

    def options(self, store: Any, **changes: Any) -> dict[str, Any]:
        """Options of image_api that use this service."""
        given = {
            "base_url": self.url,
            "api_key_env": "PE_RAY_TEST_KEY",
            "store": str(store),
            "image_size": 256,
            "random": {"model": "tiny", "size": 256},
            "vary": {"model": "tiny", "size": 256, "endpoint": "edits"},
            "price": {"random": 0.02, "vary": 0.03},
            "max_calls": 1000,
            "max_cost": 100,
        }
        return given | changes

    def chat(self, store: Any, **changes: Any) -> dict[str, Any]:
        """Options of captions that this service paraphrases."""
        given = {
            "kind": "chat",
            "base_url": self.url,
            "api_key_env": "PE_RAY_TEST_KEY",
            "store": str(store),
            "model": "tiny",
            "instructions": ["Slightly: {caption}", "Wholly: {caption}"],
            "price": 0.001,
            "max_calls": 1000,
            "max_cost": 100,
        }
        return given | changes


def png(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="PNG")
    return sink.getvalue()


def answered(**data: Any) -> bytes:
    return json.dumps({"created": 1, "data": [data]}).encode()


def data_uri(image: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


class Handler(BaseHTTPRequestHandler):
    """Draws blocks of colour: from chance, as a real service, and for variations near the image."""

    protocol_version = "HTTP/1.1"
    service: Service

    def do_GET(self) -> None:
        service = self.service
        if "endpoint_id=" in self.path:  # fal's list
            found = [
                {"endpoint_id": name, "metadata": {"status": end or "active"}}
                for name, end in service.models.items()
            ]
            return self.reply(200, json.dumps({"models": found}).encode())
        if self.path == "/v1/models":
            models = [{"id": name, "shutdown_date": end} for name, end in service.models.items()]
            return self.reply(200, json.dumps({"object": "list", "data": models}).encode())
        service.asked_for_links.append(dict(self.headers))
        return self.reply(200 if service.linked else 404, service.linked)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        call = self._call(body)
        service = self.service
        with service.lock:
            service.calls.append(call)
            fault = service.faults.pop(0) if service.faults else None
            service.at_once += 1
            service.most_at_once = max(service.most_at_once, service.at_once)
        try:
            time.sleep(service.delay)
            if fault is None or not fault(self):
                self._answer(call)
        finally:
            with service.lock:
                service.at_once -= 1

    def _call(self, body: bytes) -> Call:
        sent, image = read_call(self.headers["Content-Type"], body)
        fields = {name: str(value) for name, value in sent.items()}
        endpoint = self.path.removeprefix("/v1/").removeprefix("images/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Call(endpoint, fields, image, headers, body, sent)

    def _answer(self, call: Call) -> None:
        is_fal = call.endpoint.startswith("fal-ai/")
        if self.headers.get("Authorization") != f"{'Key' if is_fal else 'Bearer'} {KEY}":
            text = json.dumps({"error": {"message": f"bad key {KEY[:-2]}", "code": "invalid"}})
            return self.reply(401, text.encode())
        if call.endpoint == "chat/completions":
            return self.reply(200, chat(call.sent))
        image = draw(call.sent, call.image)
        with self.service.lock:
            self.service.drawn.append(image)
        self.reply(200, answer(image, as_fal=is_fal))

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def status(code: int, error_code: str = "", message: str = "", **headers: str) -> Fault:
    return error(code, {"error": {"code": error_code, "message": message}}, **headers)


def error(code: int, body: Any, **headers: str) -> Fault:
    """An answer with this status and this JSON."""

    def fault(handler: Handler) -> bool:
        handler.reply(code, json.dumps(body).encode(), **headers)
        return True

    return fault


def body(content: bytes) -> Fault:
    def fault(handler: Handler) -> bool:
        handler.reply(200, content)
        return True

    return fault


def half_a_body(handler: Handler) -> bool:
    content = answer(np.zeros((256, 256, 3), dtype=np.uint8))
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True
    return True


def silent(seconds: float) -> Fault:
    def fault(handler: Handler) -> bool:
        time.sleep(seconds)
        handler.close_connection = True
        return True

    return fault


@contextmanager
def serving() -> Iterator[Service]:
    """A service on a free port of this machine."""
    service = Service()
    handler = type("Bound", (Handler,), {"service": service})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    # A daemon: whoever serves to the end is asked to stop only after other threads have ended.
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def fal(service: Service, store: Path, **changes: Any) -> Fal:
    model = "fal-ai/tiny"
    calls = {
        "random": {"model": model, "size": 256},
        "vary": {"model": f"{model}/image-to-image", "size": 256},
    }
    return Fal(FalOptions(**service.options(store, **calls, **changes)), NAMES)


def made(service: Service, store: Path, **changes: Any) -> ImageApi:
    return ImageApi(ImageApiOptions(**service.options(store, **changes)), NAMES)


def spent(store: Path) -> tuple[int, float]:
    with closing(sqlite3.connect(store / "calls.sqlite")) as database:
        calls, cost = database.execute(
            "SELECT count(*), total(price) FROM calls WHERE state <> 'refused'"
        ).fetchone()
    return calls, round(cost, 9)

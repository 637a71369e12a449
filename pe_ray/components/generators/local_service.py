"""A local service in the place of a paid one: OpenAI's routes and fal's; blocks and words."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Mapping
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from pe_ray.files.png import encode_png
from pe_ray.plugins import Images

_SIDE = 256  # of an image for which none is asked


def read_call(content_type: str, body: bytes) -> tuple[dict[str, Any], Images | None]:
    """Return the fields of a call, JSON or a form, and the image that came along."""
    sent: Any = None
    if content_type == "application/json":
        fields = json.loads(body)
        if "image_url" in fields:
            sent = base64.b64decode(fields["image_url"].partition(",")[2])
    else:
        fields = {}
        head = f"Content-Type: {content_type}\r\n\r\n".encode()
        for part in BytesParser().parsebytes(head + body).walk():
            name: Any = part.get_param("name", header="Content-Disposition")
            content: Any = part.get_payload(decode=True)
            if name == "image":
                sent = content
            elif name:
                fields[name] = content.decode()
    return fields, None if sent is None else np.asarray(Image.open(io.BytesIO(sent)))


def draw(fields: Mapping[str, Any], image: Images | None) -> Images:
    """Draw blocks of colour, [height, width, 3], from chance as services do; near a sent image."""
    size = fields.get("image_size")
    if isinstance(size, Mapping):
        width, height = size["width"], size["height"]
    elif image is not None:
        height, width = image.shape[:2]
    else:
        width, height = map(int, fields.get("size", f"{_SIDE}x{_SIDE}").split("x"))
    blocks = np.random.default_rng().integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    made: Images = blocks[rows[:, None], columns]
    return made if image is None else (0.7 * image + 0.3 * made).astype(np.uint8)


def answer(image: Images, *, as_fal: bool = False) -> bytes:
    """Return an image as OpenAI answers it, or as fal does with sync_mode."""
    text = base64.b64encode(encode_png(image)).decode()
    if as_fal:
        url = f"data:image/png;base64,{text}"
        return json.dumps({"images": [{"url": url}], "has_nsfw_concepts": [False]}).encode()
    return json.dumps({"created": 1, "data": [{"b64_json": text}]}).encode()


def chat(fields: Mapping[str, Any]) -> bytes:
    """Answer as OpenAI's chat does, with the end of what was asked."""
    asked = fields["messages"][-1]["content"]
    message = {"role": "assistant", "content": f'"{asked.partition(": ")[2]}, again"\n'}
    return json.dumps({"choices": [{"message": message}]}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fields, image = read_call(self.headers["Content-Type"], body)
        if self.path.endswith("/chat/completions"):
            content = chat(fields)
        else:
            content = answer(draw(fields, image), as_fal="/images/" not in self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def serve(handler: type[BaseHTTPRequestHandler] = _Handler) -> ThreadingHTTPServer:
    """Serve on a free port of this machine, to this machine, until this process ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    # A daemon: whoever serves to the end is asked to stop only after other threads have ended.
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server

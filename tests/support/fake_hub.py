"""As much of Hugging Face's hub as an upload of small files needs; keeps what it was sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """files: content by path in the one repository, `me/set`. deleted: paths."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.files = {"data/train-00000-of-00009.parquet": b"old", "NOTES.md": b"kept"}

    def answer(self, method: str, path: str, body: bytes) -> Any:
        address = f"{self.endpoint}/datasets/me/set"
        if path == "/api/whoami-v2":
            return {"name": "me", "type": "user", "auth": {}}
        if path == "/api/repos/create":
            return {"url": address}
        if path.startswith("/api/datasets/me/set/tree/"):
            return [
                {"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.files
            ]
        if path == "/api/datasets/me/set/preupload/main":
            wanted = json.loads(body)["files"]
            return {
                "files": [
                    {**file, "uploadMode": "regular", "shouldIgnore": False} for file in wanted
                ]
            }
        if path == "/api/datasets/me/set/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "deletedFile":
                    del self.files[value["path"]]
            return {"commitUrl": f"{address}/commit/0", "commitOid": "0", "hookOutput": ""}
        return {} if path != "/api/datasets/me/set" else None


class _Requests(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        answer = self.server.answer(self.command, self.path.partition("?")[0], body)
        self.send_response(404 if answer is None else 200)
        if answer is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        content = json.dumps(answer or {}).encode()
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()

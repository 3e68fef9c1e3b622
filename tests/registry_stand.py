"""Stand in for a Confluent schema registry: the calls that are used, over HTTP; it can fail, hang or be away."""

from __future__ import annotations

import base64
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RegistryStand(ThreadingHTTPServer):
    """Speak the two calls of the Confluent registry API that are used; count them."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.subjects, self.schemas, self.calls, self.users = {}, {}, [], set()
        self.failing, self.hangs_s = 0, 0.0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        subject = self.path.split("/")[2]
        self.server.subjects[subject] = body
        schema_id = 100 + len(self.server.schemas)
        self.server.schemas[schema_id] = body["schema"]
        self.answer(200, {"id": schema_id})

    def do_GET(self):
        if self.path.startswith("/subjects"):
            self.answer(200, list(self.server.subjects))
            return
        schema_id = int(self.path.split("?")[0].rsplit("/", 1)[1])
        if schema_id in self.server.schemas:
            self.answer(200, {"schema": self.server.schemas[schema_id]})
        else:
            self.answer(404, {"error_code": 40403, "message": "Schema not found"})

    def answer(self, status, body):
        self.server.calls.append((self.command, self.path))
        time.sleep(self.server.hangs_s)
        if header := self.headers.get("Authorization"):
            self.server.users.add(base64.b64decode(header.split()[1]).decode())
        if self.server.failing:
            status, body = self.server.failing, {"error_code": 50001, "message": "no"}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Keep the test output quiet."""


@contextmanager
def running(port=0):
    """Run a registry, at a port of one before it if given."""
    with RegistryStand(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()

"""Stand in for a worker where only the supervisor is under test: health pages, nothing else.

In the folder of `FAKE_WORKER_DIR`, a file `ROLE.die` makes it end when it starts, with the code that the
file holds, `ROLE.stall` makes it say that it makes no progress, and `ROLE.wait` that it is not ready.
"""

from __future__ import annotations

import http.server
import os
import sys
from pathlib import Path

role = sys.argv[1]
folder = Path(os.environ["FAKE_WORKER_DIR"])


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        stalled = self.path == "/healthz" and (folder / f"{role}.stall").exists()
        stalled |= self.path == "/readyz" and (folder / f"{role}.wait").exists()
        self.send_response(503 if stalled else 200)
        self.end_headers()
        self.wfile.write(b'{"healthy": true, "lag": {"usage-0": 2, "usage-1": 3}}')

    def log_message(self, *_):
        pass


if (folder / f"{role}.die").exists():
    print(f"{role} cannot go on", flush=True)
    sys.exit(int((folder / f"{role}.die").read_text()))
port = int(os.environ[f"TOKENLINE_{role.upper()}_HEALTH_PORT"])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Pages).serve_forever()

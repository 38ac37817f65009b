"""An HTTP server on this machine with faults that a test switches on."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Faults:
    """What the server does wrong; the lists are of the next answers, each used once."""

    cut_after: list[int] = field(default_factory=list)  # bytes, then the connection ends
    status: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str = "strong"  # or "weak", "none"
    wait_s: float = 0  # before each block
    gate_at: int | None = None  # bytes, after which it waits for `Server.gate`
    block: int = 64 * 1024
    redirect: str = ""  # of the next answer
    loop: str = ""  # of every answer
    announced: int | None = None  # Content-Length; -1: none, in chunks
    encoding: str = ""


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> bytes) at `url`; `asked` are the requests as (path, Range)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.faults = Faults()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.hub = None  # a `hub_server.Hub`
        self.gate = threading.Event()

    def handle_error(self, request, client_address):
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        server, faults = self.server, self.server.faults
        if server.hub is not None and server.hub.answers(self, body):
            return None
        if body:
            server.asked.append((self.path, self.headers.get("Range", "")))
        if faults.redirect or faults.loop:
            self.send_response(302)
            self.send_header("Location", faults.redirect or faults.loop)
            self.send_header("Content-Length", "0")
            faults.redirect = ""
            return self.end_headers()
        status = faults.status.pop(0) if faults.status else 200
        data = server.files.get(self.path)
        if status != 200 or data is None:
            self.send_response(status if status != 200 else 404)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        start = 0
        wanted = self.headers.get("Range", "")
        if faults.ranges and wanted and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if faults.etag != "none":
            self.send_header("ETag", etag if faults.etag == "strong" else f"W/{etag}")
        if faults.encoding:
            self.send_header("Content-Encoding", faults.encoding)
        chunked = faults.announced == -1
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            length = len(data) - start if faults.announced is None else faults.announced
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if body:
            self._send(data[start:], chunked)

    def _send(self, data, chunked):
        faults = self.server.faults
        cut = faults.cut_after.pop(0) if faults.cut_after else None
        data = data if cut is None else data[:cut]
        for i in range(0, len(data), faults.block):
            time.sleep(faults.wait_s)
            if faults.gate_at is not None and i >= faults.gate_at:
                self.server.gate.wait(60)
            block = data[i : i + faults.block]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
        if chunked and cut is None:
            self.wfile.write(b"0\r\n\r\n")
        if cut is not None:
            self.close_connection = True


@contextlib.contextmanager
def serving():
    """A running server."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

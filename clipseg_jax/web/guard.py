"""What the server refuses before Gradio sees it, and the headers that keep a page to its own host.

Gradio serves more than this page needs: it fetches addresses for its visitors, keeps links to what
they did, and takes requests of any size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_API = "/gradio_api/"
# What this page does without: other sites through this server, stored links, other ways to run.
_CLOSED = (
    *("proxy", "stream", "deep_link", "component_server", "call", "api", "custom_component"),
    *("runs", "run-history", "openapi.json", "mcp", "token"),
)
_UPLOAD = f"{_API}upload"
_BODY_BYTES = 1 << 18  # of any other request
_ROOM_BYTES = 1 << 14  # around the file in an upload
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio makes functions of templates
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
        "form-action 'self'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class Guard:
    """ASGI middleware that refuses what the page does not need.

    Args:
      app: the page.
      upload_bytes: of a file.
    """

    def __init__(self, app: ASGIApp, *, upload_bytes: int):
        self._app = app
        self._upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request with an error, or hands it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if is_closed(scope["path"]):
            refusal = PlainTextResponse("not part of this page", 404)
            await refusal(scope, receive, send_with_headers)
            return
        if scope["method"] != "POST":
            await self._app(scope, receive, send_with_headers)
            return
        upload = scope["path"].rstrip("/") == _UPLOAD
        most = self._upload_bytes + _ROOM_BYTES if upload else _BODY_BYTES
        size = _content_length(scope)
        if size is None or size > most:
            text = "how long is it?" if size is None else f"more than {most} bytes"
            refusal = PlainTextResponse(text, 411 if size is None else 413)
            await refusal(scope, receive, send_with_headers)
            return
        if not upload:
            body = await _read(receive)
            if names_address(body):
                refusal = PlainTextResponse("addresses are not fetched here", 400)
                await refusal(scope, receive, send_with_headers)
                return
            receive = _replay(body, receive)
        await self._app(scope, receive, send_with_headers)


def is_closed(path: str) -> bool:
    """Whether a path of the server is none of the page's."""
    if path.startswith("/monitoring"):
        return True
    if not path.startswith(_API):
        return False
    rest = path[len(_API) :]
    if rest.startswith(("file=", "file/")):
        return "://" in rest  # of another site
    return rest.replace("=", "/").partition("/")[0] in _CLOSED


def names_address(body: bytes) -> bool:
    """Whether a request names a file by an address, which Gradio would download."""
    try:
        return any("://" in path for path in _paths(json.loads(body or b"null")))
    except RecursionError:
        return True  # nobody looks that deep
    except ValueError:
        return False  # Gradio refuses what is no JSON


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for each in value.values():
            yield from _paths(each)
    elif isinstance(value, list):
        for each in value:
            yield from _paths(each)


def _content_length(scope: Scope) -> int | None:
    """What a request says; no more than that is handed on. None: it doesn't say it, or in parts."""
    headers = dict(scope["headers"])
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() and b"transfer-encoding" not in headers else None


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that starts with the body that was read."""
    first = True

    async def again() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again

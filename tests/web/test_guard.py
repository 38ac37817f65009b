"""What the server refuses before Gradio sees it."""

from __future__ import annotations

import asyncio

import pytest

from clipseg_jax.web.guard import Guard, is_closed, names_address


async def echo(scope, receive, send):
    """Answers with the length of the body."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


def ask(method, path, body=b"", headers=None, upload_bytes=1000):
    """(status, headers, body) of an answer; `body` comes in two parts."""
    if headers is None:
        headers = {"content-length": str(len(body))}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    parts = [
        {"type": "http.request", "body": body[: len(body) // 2], "more_body": True},
        {"type": "http.request", "body": body[len(body) // 2 :], "more_body": False},
    ]
    sent = []

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(echo, upload_bytes=upload_bytes)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(each.get("body", b"") for each in sent[1:])


def test_what_the_page_needs_passes_with_headers():
    for path in ("/", "/assets/index.js", "/gradio_api/file=/tmp/x/a.jpg", "/gradio_api/upload"):
        status, headers, _ = ask("GET", path)
        assert status == 200
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "http" not in policy
    body = b'{"data": [{"path": "/tmp/x/a.jpg"}], "session_hash": "a"}'
    assert ask("POST", "/gradio_api/queue/join", body)[::2] == (200, str(len(body)).encode())


@pytest.mark.parametrize(
    "path",
    [
        "proxy=https://example.com/",
        "file=https://example.com/a.jpg",
        "file/http://example.com/a.jpg",
        "deep_link",
        "component_server/",
        "call/segment",
        "stream/1",
        "mcp/sse",
        "openapi.json",
        "custom_component/x/client/component/index.js",
    ],
)
def test_what_it_does_without_is_closed(path):
    assert ask("GET", f"/gradio_api/{path}")[0] == 404
    assert is_closed("/monitoring/summary")


def test_sizes():
    assert ask("POST", "/gradio_api/upload", bytes(1000 + 16_000))[0] == 200
    assert ask("POST", "/gradio_api/upload", bytes(1000 + 17_000))[0] == 413
    assert ask("POST", "/gradio_api/queue/join", bytes(300_000))[0] == 413
    assert ask("POST", "/gradio_api/upload", b"x", headers={})[0] == 411
    sly = {"content-length": "1", "transfer-encoding": "chunked"}
    assert ask("POST", "/gradio_api/upload", b"x", headers=sly)[0] == 411


def test_addresses_are_not_fetched():
    join = "/gradio_api/queue/join"
    assert ask("POST", join, b'{"data": [{"path": "https://example.com/a"}]}')[0] == 400
    assert ask("POST", join, b'{"data": [{"path": "\\u0068ttp://example.com/a"}]}')[0] == 400
    assert names_address(b'{"a": [' * 3 + b'{"path": "ftp://x"}' + b"]}" * 3)
    assert names_address(b"[" * 100_000)
    assert not names_address(b"no json")
    # The browser's own address of a file is only shown.
    assert not names_address(b'{"data": [{"path": "/tmp/a", "url": "http://host/a"}]}')

"""Downloads one file over HTTP: resumed where it stopped, bounded, and checked before it counts."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

from input_pipeline import commands
from input_pipeline.text_lists import escaped, printable
from input_pipeline.writing import CannotWrite
from weights_convert.errors import CheckpointError
from weights_convert.named.cache import Lock, accept, fault, is_ready, location
from weights_convert.named.names import Weights
from weights_convert.named.part import BLOCK, Part

_AGENT = "clipseg_jax"
_TIMEOUT_S = 30.0  # of one step: a connection, or a read
_ATTEMPTS = 5  # in a row in which nothing arrived
_WAIT_S = 1.0  # before the second attempt; twice as long before each further one
_LARGEST = 64 * 2**30  # bytes of a file whose size neither we nor the server knows
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # what a server says that may answer later


class CannotDownload(OSError):  # noqa: N818
    """A file cannot be downloaded now; the message says where to get it and where to put it."""


class _TryAgainError(Exception):
    """A transfer ended before its time, or did not begin; `attempts` in a row are enough."""

    def __init__(self, reason: str, attempts: int = _ATTEMPTS):
        super().__init__(reason)
        self.attempts = attempts


def fetch(weights: Weights) -> Path:
    """The file of `weights`, from the cache or downloaded into it.

    Several processes that share the cache download it once. What an earlier one left is resumed.

    Raises:
      CheckpointError: the server refuses, or sends another file.
      CannotDownload: no network, or no answer. CannotWrite: the disk is full, or the folder cannot
        be written.
    """
    target = location(weights)
    if is_ready(target, weights):
        return target
    with Lock(target, weights.name) as lock:
        if not is_ready(target, weights):
            part = target.with_name(f"{target.name}.part")
            if not lock.held:  # a name of its own, as others may be at it
                part = part.with_name(f"{part.name}-{socket.gethostname()}-{os.getpid()}")
            _download(weights, target, part)
    return target


def by_hand(weights: Weights, target: Path) -> str:
    """How a user without a network gets the file."""
    size = "" if weights.size is None else f"{weights.size:,} bytes, "
    known = f"sha256 {weights.sha256}" if len(weights.sha256) == 64 else ""
    known = known or (f"sha256 {weights.sha256}..." if weights.sha256 else "no published sha256")
    return (
        f"download {weights.address} ({size}{known}) elsewhere and put it at {target}: then it is "
        "found without a network"
    )


def _download(weights: Weights, target: Path, path: Path) -> None:
    commands.say(
        escaped(f"downloading {weights.name} from {weights.address} to {target}"), error=True
    )
    with contextlib.closing(Part(path, weights, target)) as part, part.bar:
        if part.digest.hexdigest() != weights.sha256:  # an earlier run may have had all of it
            _transfer_all(part)
        wrong = fault(weights, target, part.digest.hexdigest(), part.size)
        if wrong and part.resumed:  # the beginning may be of another version, or damaged
            part.restart()
            _transfer_all(part)
            wrong = fault(weights, target, part.digest.hexdigest(), part.size)
        if wrong:
            part.remove()
            raise CheckpointError(
                f"{weights.address} is not {weights.name}: {wrong}; it was removed. A proxy may "
                "have changed it, or the publisher has: try again, or get the file elsewhere"
            )
        part.finish()
        accept(target, weights, part.digest.hexdigest())


def _transfer_all(part: Part) -> None:
    """Calls `_transfer` until the file is there, or nothing arrives any more."""
    failures = 0
    while True:
        before = part.size
        try:
            return _transfer(part)
        except _TryAgainError as error:
            failures = 1 if part.size > before else failures + 1
            if failures >= error.attempts:
                name = part.weights.name
                raise CannotDownload(
                    f"cannot download {name}: {error}; {by_hand(part.weights, part.target)}"
                ) from OSError(errno.EHOSTUNREACH, str(error))
            commands.say(f"{part.weights.name}: {error}; trying again", error=True)
            time.sleep(_WAIT_S * 2 ** (failures - 1))


def _transfer(part: Part) -> None:
    """Gets what is missing of a file in one request.

    Raises:
      _TryAgainError: not all of it came.
      CheckpointError, CannotWrite: as `fetch`.
    """
    if part.size and not part.can_resume():
        part.restart()
    try:
        with _open(part) as response:
            total = _begin(part, response)
            limit = total or part.weights.size or _LARGEST
            while block := response.read(BLOCK):
                if part.size + len(block) > limit:
                    part.remove()
                    raise CheckpointError(
                        f"{part.weights.address} sends more than the {limit:,} bytes of "
                        f"{part.weights.name}; it was removed: this is not the file"
                    )
                part.append(block)
    except urllib.error.HTTPError as error:
        _refused(part, error)
    except (CheckpointError, CannotWrite):
        raise
    except urllib.error.URLError as error:  # no connection: most likely there is no network
        raise _TryAgainError(_reason(error), attempts=2) from error
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(_reason(error)) from error
    if total is not None and part.size < total:
        raise _TryAgainError(f"the transfer ended after {part.size:,} of {total:,} bytes")


def _open(part: Part) -> Any:
    """The response to a request for what is missing."""
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.validator:  # the server sends the whole file if it is not the same any more
            headers["If-Range"] = part.validator
    request = urllib.request.Request(part.weights.address, headers=headers)
    return urllib.request.build_opener(_SafeRedirects).open(request, timeout=_TIMEOUT_S)


def _begin(part: Part, response: Any) -> int | None:
    """Checks the head of a response and readies the file for its body; the whole size, if known."""
    weights, headers = part.weights, response.headers
    if (
        response.status not in (200, 206)
        or headers.get("Content-Encoding", "identity") != "identity"
    ):
        raise CheckpointError(
            f"{weights.address} answers {response.status} and not with the file; "
            f"{by_hand(weights, part.target)}"
        )
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if found is None or int(found[1]) != part.size:
            part.restart()
            raise _TryAgainError("the server resumes at another place than it was asked for")
        part.resumed = True
        total = int(found[2]) if found[2] != "*" else None
    else:
        if part.size:  # it cannot resume, or the file is another now
            part.restart()
        length = headers.get("Content-Length", "")
        total = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    if None not in (total, weights.size) and total != weights.size:
        part.remove()
        raise CheckpointError(
            f"{weights.address} has {total:,} bytes, {weights.name} {weights.size:,}: this is not "
            f"the file; {by_hand(weights, part.target)}"
        )
    part.expect(total, _validator(headers))
    return total


def _validator(headers: Any) -> str:
    """What tells whether the file is still the same, for `If-Range`: no weak ETag does."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _refused(part: Part, error: urllib.error.HTTPError) -> NoReturn:
    """Raises what an answer that is no file means."""
    with error:
        said = " ".join(str(error.reason).split())  # a loop of redirects is told in three lines
        reason = printable(f"HTTP {error.code} {said}")
        if error.code == 416 and part.size:  # nothing is left to send, or the file is another now
            part.restart()
            raise _TryAgainError("the server has no such part of the file") from None
    if error.code in _BUSY:
        raise _TryAgainError(f"the server says {reason}") from None
    raise CheckpointError(
        f"{part.weights.name}: {part.weights.address} says {reason}; "
        f"{by_hand(part.weights, part.target)}"
    ) from None


def _reason(error: BaseException) -> str:
    """What went wrong with a connection, in a few words."""
    while isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message}); behind a proxy that opens "
            "connections set SSL_CERT_FILE to its certificate"
        )
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT_S:g} s"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(text).split()))


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https alone; a server on this machine may also lead to itself."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        here, there = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        local = here.scheme == there.scheme == "http" and _is_loopback(here) and _is_loopback(there)
        if there.scheme != "https" and not local:
            raise CheckpointError(
                f"{req.full_url} leads to {printable(newurl)}, which is no https address; it was "
                "not followed. Get the file elsewhere"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_loopback(parts: urllib.parse.SplitResult) -> bool:
    return parts.hostname in ("127.0.0.1", "localhost", "::1")

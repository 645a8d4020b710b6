"""Guard: what may go into Gradio's own routes, and where the page may fetch from.

Gradio fetches a file by its URL for whoever asks. That would make this machine open addresses for strangers, so such
requests are refused. It takes uploads without end; here they end at what the disk is meant to hold. And a page that may
load from nowhere but here sends nothing elsewhere either.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lineament.demo.config import Limits
from lineament.stream.write.network import is_loopback

MAX_JSON_BYTES = 1_000_000
"""of a request that is no upload; the page's own have some kilobytes"""
_UNUSED = r"/(process_recording|(undo-)?vibe-\w+|deep_link)/?$"
"""routes of Gradio that write files past the limits, for components that the page does not have"""
_MAX_DEPTH = 60
"""of JSON; Gradio goes into it by recursion"""
_FORM_BYTES = 100_000
"""what a form may have round its file"""
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss: data: blob:; object-src 'none'; base-uri 'self'"
)


class Guard:
    """ASGI middleware. folder: where uploads and results lie. login: whether one is asked for."""

    def __init__(self, app: ASGIApp, folder: Path, limits: Limits, login: bool = False) -> None:
        self._app, self._folder, self._limits, self._login = app, folder, limits, login
        self._coming = 0
        """bytes of the uploads under way"""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if re.search(r"/(file|proxy)[=/]+\s*[a-z]+:", path, re.IGNORECASE):
            await PlainTextResponse("addresses are not opened here; send the file itself", 403)(scope, receive, send)
        elif re.search(_UNUSED, path):
            await PlainTextResponse("this is not offered here", 404)(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, _with_policy(send))
        elif self._login and not path.rstrip("/").endswith("/login") and not await self._knows(scope):
            await PlainTextResponse("log in first", 401)(scope, receive, send)
        elif path.rstrip("/").endswith("/upload"):
            await self._upload(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _knows(self, scope: Scope) -> bool:
        """Whether Gradio says that the visitor is logged in. It does not ask that itself at every route."""
        statuses: list[int] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        path = scope["path"].partition("/gradio_api/")[0] + "/gradio_api/login_check"
        asked = {**scope, "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
        await self._app(asked, receive, send)
        return statuses == [200]

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            await PlainTextResponse("the request is too long; send files as uploads", 413)(scope, receive, send)
        elif refusal := _refused(body):
            await PlainTextResponse(refusal, 400)(scope, receive, send)
        else:
            await self._app(scope, _again(body, receive), _with_policy(send))

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Its size is known before it is read: a request that does not tell it is refused."""
        headers = Headers(scope=scope)
        told = headers.get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,15}", told) or "transfer-encoding" in headers:  # which would hold instead
            await PlainTextResponse("an upload must tell its length", 411)(scope, receive, send)
            return
        size = int(told)
        if size > self._limits.upload_mb * 1e6 + _FORM_BYTES:
            most = f"a file of at most {self._limits.upload_mb} MB is taken"
            await PlainTextResponse(most, 413)(scope, receive, send)
            return
        if _bytes_in(self._folder) + self._coming + size > self._limits.store_mb * 1e6:
            full = "the store for files is full; try again in some minutes"
            await PlainTextResponse(full, 507)(scope, receive, send)
            return
        self._coming += size
        try:
            await self._app(scope, receive, _with_policy(send))
        finally:
            self._coming -= size


def from_own_page(headers: Headers, login: bool) -> bool:
    """Whether a socket was opened by a page of this demo, or by a program, rather than by another web site.

    Without a log-in, the page must also have been loaded under a name of this machine: a site whose own name was made
    to lead here (DNS rebinding) would otherwise pass for the demo's page.
    """
    # a proxy may rewrite Host; no browser lets a page set either header
    host = headers.get("x-forwarded-host") or headers.get("host", "")
    try:
        origin, name = urlsplit(headers.get("origin", f"http://{host}")), urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return origin.netloc.lower() == host.lower() and (login or is_loopback(name))


def _bytes_in(folder: Path) -> int:
    """Of all files in it; others may delete files and folders meanwhile, which os.walk passes over."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


async def _body(receive: Receive) -> bytes | None:
    """All of a request's body; None where it is too long."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += bytes(message.get("body", b""))
        if len(body) > MAX_JSON_BYTES:
            return None
        if not message.get("more_body", False):
            return body


def _refused(body: bytes) -> str | None:
    """Why a body may not go on: a file in its JSON is not one that was uploaded but one to fetch, or it is a trap."""
    too_deep = "the request is nested too deep"
    try:
        left = [(json.loads(body), 0)]
    except ValueError:
        return None  # which Gradio refuses
    except RecursionError:
        return too_deep
    while left:
        value, depth = left.pop()
        if depth > _MAX_DEPTH:
            return too_deep
        if isinstance(value, list):
            left += ((item, depth + 1) for item in value)
        elif isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and re.match(r"\s*[a-z][a-z0-9+.-]*:", path, re.IGNORECASE):
                return "addresses are not opened here; send the file itself"
            left += ((item, depth + 1) for item in value.values())
    return None


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_policy(send: Send) -> Send:
    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = _POLICY
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
        await send(message)

    return told

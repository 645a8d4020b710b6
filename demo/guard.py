"""Guard: limits on requests to Gradio's own routes, and the content security policy of the page.

Gradio fetches files from URLs for anyone who asks, which would make this machine open addresses for strangers; such
requests are refused. Gradio also accepts any number of uploads; here they are limited to the configured disk space. The
policy lets the page load from and send to this server only.
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
"""of a request other than an upload; the page's own take a few kilobytes"""
_UNUSED = r"/(process_recording|(undo-)?vibe-\w+|deep_link)/?$"
"""Gradio routes that bypass the limits on files; they belong to components that the page does not have"""
_MAX_DEPTH = 60
"""of JSON; Gradio walks it recursively"""
_FORM_BYTES = 100_000
"""allowance for the form around an uploaded file"""
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss: data: blob:; object-src 'none'; base-uri 'self'"
)


class Guard:
    """ASGI middleware. folder: where uploads and results are stored. login: whether one is required."""

    def __init__(self, app: ASGIApp, folder: Path, limits: Limits, login: bool = False) -> None:
        self._app, self._folder, self._limits, self._login = app, folder, limits, login
        self._uploading = 0
        """bytes of the uploads in progress"""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if re.search(r"/(file|proxy)[=/]+\s*[a-z]+:", path, re.IGNORECASE):
            await PlainTextResponse("URLs are not fetched; upload the file itself", 403)(scope, receive, send)
        elif re.search(_UNUSED, path):
            await PlainTextResponse("this route is disabled", 404)(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, _with_policy(send))
        elif self._login and not path.rstrip("/").endswith("/login") and not await self._logged_in(scope):
            await PlainTextResponse("log in first", 401)(scope, receive, send)
        elif path.rstrip("/").endswith("/upload"):
            await self._upload(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _logged_in(self, scope: Scope) -> bool:
        """Whether Gradio considers the visitor logged in. Gradio itself does not check this on every route."""
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
            await PlainTextResponse("the request is too large; send files as uploads", 413)(scope, receive, send)
        elif refusal := _refused(body):
            await PlainTextResponse(refusal, 400)(scope, receive, send)
        else:
            await self._app(scope, _replayed(body, receive), _with_policy(send))

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks the size before reading anything; requires a Content-Length."""
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,15}", length) or "transfer-encoding" in headers:  # which would override it
            await PlainTextResponse("an upload needs a Content-Length and no Transfer-Encoding", 411)(
                scope, receive, send
            )
            return
        size = int(length)
        if size > self._limits.upload_mb * 1e6 + _FORM_BYTES:
            most = f"the file is too large; the limit is {self._limits.upload_mb} MB"
            await PlainTextResponse(most, 413)(scope, receive, send)
            return
        if _bytes_in(self._folder) + self._uploading + size > self._limits.store_mb * 1e6:
            full = "the disk space for uploads is full; try again in a few minutes"
            await PlainTextResponse(full, 507)(scope, receive, send)
            return
        self._uploading += size
        try:
            await self._app(scope, receive, _with_policy(send))
        finally:
            self._uploading -= size


def from_own_page(headers: Headers, login: bool, own_host: str | None = None) -> bool:
    """Whether a WebSocket was opened by a page of this demo, or by a program, rather than by another web site.

    own_host: of the address that visitors see, if configured; else the request tells. Without a login, the host name
    must also be loopback: otherwise a site whose name resolves to this machine (DNS rebinding) would pass for the
    demo's page.
    """
    # a proxy may rewrite Host; a page in a browser cannot set either header
    asked = headers.get("x-forwarded-host", "").partition(",")[0].strip() or headers.get("host", "")
    host = own_host or asked
    try:
        origin, name = urlsplit(headers.get("origin", f"http://{host}")), urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return origin.netloc.lower() == host.lower() and (login or is_loopback(name))


def _bytes_in(folder: Path) -> int:
    """Size of all files in it. Files and folders may be deleted meanwhile; os.walk skips those."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


async def _body(receive: Receive) -> bytes | None:
    """The whole body of a request; None if it is too large."""
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
    """Why a body is refused: its JSON names a file by URL, or is nested too deeply. None if it is fine."""
    too_deep = "the request is nested too deeply"
    try:
        pending = [(json.loads(body), 0)]
    except ValueError:
        return None  # Gradio refuses it
    except RecursionError:
        return too_deep
    while pending:
        value, depth = pending.pop()
        if depth > _MAX_DEPTH:
            return too_deep
        if isinstance(value, list):
            pending += ((item, depth + 1) for item in value)
        elif isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and re.match(r"\s*[a-z][a-z0-9+.-]*:", path, re.IGNORECASE):
                return "URLs are not fetched; upload the file itself"
            pending += ((item, depth + 1) for item in value.values())
    return None


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_policy(send: Send) -> Send:
    async def send_with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = _POLICY
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
        await send(message)

    return send_with_policy

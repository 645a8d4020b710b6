"""Guard: what may go into Gradio's own routes, and where the page may fetch from.

Gradio fetches a file by its URL for whoever asks. That would make this machine open addresses for strangers, so such
requests are refused. It takes uploads without end; here they end at what the disk is meant to hold. And a page that may
load from nowhere but here sends nothing elsewhere either.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.config import Limits

MAX_JSON_BYTES = 1_000_000
"""of a request that is no upload; the page's own have some kilobytes"""
_FORM_BYTES = 100_000
"""what a form may have round its file"""
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss: data: blob:; object-src 'none'; base-uri 'self'"
)


class Guard:
    """ASGI middleware. folder: where uploads and results lie."""

    def __init__(self, app: ASGIApp, folder: Path, limits: Limits) -> None:
        self._app, self._folder, self._limits = app, folder, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if re.search(r"/(file|proxy)=\s*[a-z]+:", path, re.IGNORECASE):
            await PlainTextResponse("addresses are not opened here; send the file itself", 403)(scope, receive, send)
            return
        if scope["method"] == "POST" and path.rstrip("/").endswith("/upload"):
            if refusal := self._upload_refused(scope):
                await refusal(scope, receive, send)
                return
        elif scope["method"] == "POST" and re.search(r"/(queue/join|run/|api/|call/|component_server)", path):
            body = await _body(receive)
            if body is None:
                await PlainTextResponse("the request is too long; send files as uploads", 413)(scope, receive, send)
                return
            if _names_an_address(body):
                refusal = PlainTextResponse("addresses are not opened here; send the file itself", 400)
                await refusal(scope, receive, send)
                return
            receive = _again(body, receive)
        await self._app(scope, receive, _with_policy(send))

    def _upload_refused(self, scope: Scope) -> PlainTextResponse | None:
        """Its size is known before it is read: a request that does not tell it is refused."""
        told = Headers(scope=scope).get("content-length", "")
        if not told.isdecimal():
            return PlainTextResponse("an upload must tell its length", 411)
        if int(told) > self._limits.upload_mb * 1e6 + _FORM_BYTES:
            return PlainTextResponse(f"a file of at most {self._limits.upload_mb} MB is taken", 413)
        if _bytes_in(self._folder) + int(told) > self._limits.store_mb * 1e6:
            return PlainTextResponse("the store for files is full; try again in some minutes", 507)
        return None


def _bytes_in(folder: Path) -> int:
    """Of all files in it; others may delete some meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
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


def _names_an_address(body: bytes) -> bool:
    """Whether a file in the JSON is not one that was uploaded but one to fetch."""
    try:
        left = [json.loads(body)]
    except ValueError:
        return False  # which Gradio refuses
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and re.match(r"\s*[a-z][a-z0-9+.-]*:", path, re.IGNORECASE):
                return True
            left += value.values()
    return False


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

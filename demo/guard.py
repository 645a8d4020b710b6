"""Guard: what may go into Gradio's own routes, and where the page may fetch from.

Gradio fetches a file by its URL for whoever asks. That would make this machine open addresses for strangers, so such
requests are refused. And a page that may load from nowhere but here sends nothing elsewhere either.
"""

from __future__ import annotations

import json
import re

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_JSON_BYTES = 1_000_000
"""of a request that is no upload; the page's own have some kilobytes"""
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss: data: blob:; object-src 'none'; base-uri 'self'"
)


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if re.search(r"/(file|proxy)=\s*[a-z]+:", path, re.IGNORECASE):
            await PlainTextResponse("addresses are not opened here; send the file itself", 403)(scope, receive, send)
            return
        if scope["method"] == "POST" and re.search(r"/(queue/join|run/|api/|call/|component_server)", path):
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

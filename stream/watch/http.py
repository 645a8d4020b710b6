"""Monitor: the HTTP status server of a run: a status page, /metrics for Prometheus, /healthz and /readyz.

with Monitor(lambda: {"door": session}, landmarker.card, port=9100):
    ...
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, Self
from urllib.parse import urlsplit

from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import LineamentError
from lineament.stream.analyse.batch import SharedLandmarker
from lineament.stream.run.session import Session
from lineament.stream.watch.metrics import Metrics, resident_bytes
from lineament.stream.watch.status import no_picture, status
from lineament.stream.write.network import is_loopback

log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 2.0
"""timeout of a request and its answer: callers are served one after the other"""
_PAGE = Path(__file__).with_name("status.html").read_text(encoding="utf-8")
"""polls /status.json every two seconds; shows names and reasons as text, no pictures"""


def _sha256_of(tag: str) -> str:
    """Hash source of the page's only <script> or <style>, for its Content-Security-Policy."""
    inside = _PAGE.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src {_sha256_of('script')}; style-src "
    f"{_sha256_of('style')}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""of every response"""


class Monitor:
    """Serves between __enter__ and __exit__, in one thread. host: loopback, unless other machines may see it too."""

    def __init__(
        self,
        sessions: Callable[[], Mapping[str, Session]],
        card: ModelCard,
        port: int,
        host: str = "127.0.0.1",
        shared: SharedLandmarker | None = None,
    ) -> None:
        """sessions: the running ones, by name. port: 0 for a free one. shared: their model, for its batch counts."""
        self.port = port
        """the actual one within the block"""
        self._sessions, self._card, self._shared, self._host = sessions, card, shared, host
        self._metrics = Metrics(sessions, card, shared)
        self._began_s = time.monotonic()
        self._server: HTTPServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Raises LineamentError if it cannot listen on the port."""
        try:
            self._server = _Server((self._host, self.port), partial(_Handler, self))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise LineamentError(
                f"cannot serve on {self._host}:{self.port}: {reason.lower()}; try another port or host"
            ) from None
        self.port = self._server.server_port
        if not is_loopback(self._host):
            log.warning("anyone who can reach %s:%d can read the status of this run", self._host, self.port)
        log.info("status page: http://%s:%d/", self._host, self.port)
        serve, name = self._server.serve_forever, f"monitor {self.port}"
        self._thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.1}, name=name, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def may_ask(self, hosts: Sequence[str]) -> bool:
        """Whether a request with these Host headers is answered.

        On loopback only names of this machine are: after DNS rebinding, a page of another site sends its own name.
        """
        return not is_loopback(self._host) or all(is_loopback(_without_port(host)) for host in hosts)

    def answer(self, path: str, accept: str = "") -> tuple[int, str, str]:
        """HTTP status, content type and body for a path and an Accept header."""
        match path.split("?")[0]:
            case "/":
                return 200, "text/html; charset=utf-8", _PAGE
            case "/status.json":
                return 200, "application/json", json.dumps(self._status())
            case "/metrics":
                return 200, *self._metrics.text(accept)
            case "/healthz":
                sessions = self._sessions()
                faults = {name: session.fault for name, session in sessions.items() if session.fault}
                all_gone = len(faults) == len(sessions)
                return (503 if all_gone else 200), "application/json", json.dumps({"ok": not all_gone, "ended": faults})
            case "/readyz":
                missing = {name: why for name, session in self._sessions().items() if (why := no_picture(session))}
                return (503 if missing else 200), "application/json", json.dumps({"ok": not missing, "why": missing})
        return 404, "text/plain; charset=utf-8", "there is /, /status.json, /metrics, /healthz and /readyz\n"

    def _status(self) -> dict[str, object]:
        """The contents of the status page."""
        card, shared = self._card, self._shared
        return {
            "engine": {"model": card.name, "schema": card.schema, "precision": card.precision},
            "batches": shared.batches if shared else None,
            "crops": shared.crops if shared else None,
            "memory_bytes": resident_bytes(),
            "uptime_s": round(time.monotonic() - self._began_s, 1),
            "sources": [{"name": name, **status(session)} for name, session in self._sessions().items()],
        }


_WRONG_HOST = 403, "text/plain; charset=utf-8", "use localhost or 127.0.0.1\n"


class _Handler(BaseHTTPRequestHandler):
    """Answers one caller."""

    timeout = _REQUEST_TIMEOUT_S
    server_version, sys_version = "lineament", ""

    def __init__(self, monitor: Monitor, *args: Any) -> None:
        self._monitor = monitor
        super().__init__(*args)  # which answers

    def do_GET(self) -> None:
        allowed = self._monitor.may_ask(self.headers.get_all("Host", []))
        accept = ",".join(self.headers.get_all("Accept", []))
        code, kind, text = self._monitor.answer(self.path, accept) if allowed else _WRONG_HOST
        body = text.encode()
        self.send_response(code)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def log_message(self, format: str, *args: object) -> None: ...


class _Server(HTTPServer):
    def server_bind(self) -> None:
        """Skips HTTPServer's name lookup."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Closes a connection that takes too long in total; the handler's own timeout restarts with every byte."""
        too_late = threading.Timer(_REQUEST_TIMEOUT_S, _hang_up, (request,))
        too_late.start()
        try:
            super().finish_request(request, client_address)
        finally:
            too_late.cancel()
            too_late.join()

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that disconnects or sends nothing is not an error."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # already closed
        connection.shutdown(socket.SHUT_RDWR)


def _without_port(host: str) -> str:
    """The name in a Host header; empty if invalid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""

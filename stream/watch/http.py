"""Monitor: tells by HTTP how a run goes: a page for people, /metrics for Prometheus, /healthz and /readyz.

with Monitor(lambda: {"door": session}, landmarker.card, port=9100):
    ...
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, Self
from urllib.parse import urlsplit

from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import LineamentError
from lineament.stream.analyse.batch import SharedLandmarker
from lineament.stream.run.session import Session
from lineament.stream.run.stats import BUCKETS_S
from lineament.stream.watch.status import no_picture, status
from lineament.stream.write.network import is_loopback

log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 2.0
"""the longest that one caller may take to ask and to listen: callers are served one after the other"""
_PAGE = Path(__file__).with_name("status.html").read_text(encoding="utf-8")
"""asks for /status.json every two seconds; shows names and reasons as text, and no picture of any source"""


def _sha256_of(tag: str) -> str:
    """What a Content-Security-Policy calls the one <script> or <style> of the page."""
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
"""of every answer"""


class Monitor:
    """Serves between __enter__ and __exit__, by one thread. host: loopback, unless others shall see it too."""

    def __init__(
        self,
        sessions: Callable[[], Mapping[str, Session]],
        card: ModelCard,
        port: int,
        host: str = "127.0.0.1",
        shared: SharedLandmarker | None = None,
    ) -> None:
        """sessions: those that run now, by name. port: 0 for a free one. shared: their model, for its batches."""
        self.port = port
        """the real one within the block"""
        self._sessions, self._card, self._shared, self._host = sessions, card, shared, host
        self._began_s = time.monotonic()
        self._server: HTTPServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Raises LineamentError where the port cannot be had."""
        monitor = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_TIMEOUT_S
            server_version, sys_version = "lineament", ""

            def do_GET(self) -> None:
                hosts = self.headers.get_all("Host", [])
                code, kind, text = monitor.answer(self.path) if monitor.may_ask(hosts) else _WRONG_HOST
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

        try:
            self._server = _Server((self._host, self.port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise LineamentError(f"cannot serve on {self._host}:{self.port}: {reason.lower()}; try another") from None
        self.port = self._server.server_port
        if not is_loopback(self._host):
            log.warning("anyone who reaches %s:%d may read how this run goes", self._host, self.port)
        log.info("how it goes: http://%s:%d/", self._host, self.port)
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
        """Whether a caller that asked for these hosts is answered.

        On loopback only names of this machine are: a page from elsewhere, whose name was made to lead here after it was
        loaded (DNS rebinding), asks for its own.
        """
        return not is_loopback(self._host) or all(is_loopback(_without_port(host)) for host in hosts)

    def answer(self, path: str) -> tuple[int, str, str]:
        """HTTP status, content type and body for a path."""
        match path.split("?")[0]:
            case "/":
                return 200, "text/html; charset=utf-8", _PAGE
            case "/status.json":
                return 200, "application/json", json.dumps(self._status())
            case "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", "\n".join(self._metrics()) + "\n"
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
        """What the page shows."""
        card, shared = self._card, self._shared
        return {
            "engine": {"model": card.name, "schema": card.schema, "precision": card.precision},
            "batches": shared.batches if shared else None,
            "crops": shared.crops if shared else None,
            "memory_bytes": _resident_bytes(),
            "uptime_s": round(time.monotonic() - self._began_s, 1),
            "sources": [{"name": name, **status(session)} for name, session in self._sessions().items()],
        }

    def _metrics(self) -> Iterator[str]:
        """Lines of Prometheus' text format."""
        sessions = self._sessions()
        card = {"model": self._card.name, "schema": self._card.schema, "precision": self._card.precision}
        yield from _family("lineament_engine_info", "gauge", "The landmark model that runs.", [(card, 1)])
        for name, kind, says, values in (
            ("up", "gauge", "1 where pictures come.", [int(not no_picture(s)) for s in sessions.values()]),
            ("frames_total", "counter", "Frames drawn.", [s.stats.frames for s in sessions.values()]),
            ("dropped_frames_total", "counter", "Frames that gave way.", [s.dropped for s in sessions.values()]),
            ("stale_frames_total", "counter", "Dropped as too old.", [s.stale for s in sessions.values()]),
            ("reconnects_total", "counter", "Times lost and back.", [s.reconnects for s in sessions.values()]),
            ("lost_seconds_total", "counter", "Time without a picture.", [s.lost_s for s in sessions.values()]),
            ("fps", "gauge", "Of the last two seconds.", [s.stats.fps for s in sessions.values()]),
            ("faces", "gauge", "In the last frame.", [s.stats.faces for s in sessions.values()]),
        ):
            rows = [({"source": source}, value) for source, value in zip(sessions, values)]
            yield from _family(f"lineament_{name}", kind, says, rows)
        lost: list[tuple[dict[str, str], float]] = [
            ({"source": source, "output": output}, count)
            for source, session in sessions.items()
            for output, count in session.lost_messages.items()
        ]
        yield from _family("lineament_output_lost_total", "counter", "Results that did not reach an output.", lost)
        yield from _histograms(sessions)
        if self._shared is not None:
            for name, count in (("batches", self._shared.batches), ("crops", self._shared.crops)):
                yield from _family(f"lineament_landmark_{name}_total", "counter", "By the shared model.", [({}, count)])
        yield from _process()


_WRONG_HOST = 403, "text/plain; charset=utf-8", "ask for localhost or 127.0.0.1\n"


class _Server(HTTPServer):
    def server_bind(self) -> None:
        """Without the name look-up that HTTPServer makes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Hangs up on a caller that takes too long in all; the handler's own limit begins anew with every byte."""
        too_late = threading.Timer(_REQUEST_TIMEOUT_S, _hang_up, (request,))
        too_late.start()
        try:
            super().finish_request(request, client_address)
        finally:
            too_late.cancel()
            too_late.join()

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that hangs up or says nothing is no news."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it was quicker
        connection.shutdown(socket.SHUT_RDWR)


def _histograms(sessions: Mapping[str, Session]) -> Iterator[str]:
    name = "lineament_stage_seconds"
    yield f"# HELP {name} Time by stage; age is from capture to drawn."
    yield f"# TYPE {name} histogram"
    for source, session in sessions.items():
        for stage, (counts, sum_s) in session.stats.histograms().items():
            labels, total = {"source": source, "stage": stage}, 0
            for bound_s, count in zip([*map(str, BUCKETS_S), "+Inf"], counts):
                total += count
                yield f"{name}_bucket{_labels({**labels, 'le': bound_s})} {total}"
            yield f"{name}_sum{_labels(labels)} {sum_s:.6f}"
            yield f"{name}_count{_labels(labels)} {total}"


def _family(name: str, kind: str, says: str, rows: list[tuple[dict[str, str], float]]) -> Iterator[str]:
    yield f"# HELP {name} {says}"
    yield f"# TYPE {name} {kind}"
    for labels, value in rows:
        yield f"{name}{_labels(labels)} {value:.6g}" if isinstance(value, float) else f"{name}{_labels(labels)} {value}"


def _labels(labels: Mapping[str, str]) -> str:
    def quoted(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    inside = ",".join(f'{name}="{quoted(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _process() -> Iterator[str]:
    """Memory, descriptors and threads, where Linux tells them."""
    resident_bytes = _resident_bytes()
    if resident_bytes is None:
        return
    for name, says, value in (
        ("process_resident_memory_bytes", "Memory in use.", resident_bytes),
        ("process_open_fds", "Open descriptors.", len(os.listdir("/proc/self/fd"))),
        ("process_threads", "Threads, those of libraries too.", len(os.listdir("/proc/self/task"))),
    ):
        yield from _family(name, "gauge", says, [({}, value)])


def _resident_bytes() -> int | None:
    if not os.path.isdir("/proc/self/fd"):
        return None
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _without_port(host: str) -> str:
    """The name in a Host header; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""

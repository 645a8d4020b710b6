"""Network: sends results to other machines from a separate thread, so that no receiver can delay a run.

Addresses, and the thread with its bounded buffer; the protocols are in media, mqtt, udp and websocket.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar
from urllib.parse import unquote, urlsplit

from lineament.landmarks.types import U8, LineamentError, Result
from lineament.stream.backoff import Backoff
from lineament.stream.mailbox import Closed, Mailbox
from lineament.stream.read.spec import redacted_spec

log = logging.getLogger(__name__)

T = TypeVar("T")

_PORTS = {
    **{"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "srt": None},
    **{"ws": None, "mqtt": 1883, "mqtts": 8883},
    **{"osc": 39539, "openseeface": 11573},
}
"""default port by scheme; None if there is none"""
MESSAGES = 64
"""lines of JSON buffered for a broker, and for each WebSocket client: two seconds of video"""
CONNECT_S = 5.0
"""timeout of a connection attempt"""
_IDLE_S = 0.5
"""between keep-alive calls while there is nothing to send"""
_FINISH_S = 1.0
"""at the end, time to send what is buffered"""
_JOIN_S = 8.0
"""timeout for an interrupted thread to end: longer than a connection attempt"""


@dataclass(frozen=True, slots=True)
class Address:
    """An output's URL, parsed."""

    url: str
    scheme: str
    user: str | None
    password: str | None
    host: str
    port: int
    path: str
    """decoded, without the leading slash"""

    @property
    def shown(self) -> str:
        """For logs, without the password."""
        return redacted_spec(self.url)


def parsed(url: str) -> Address:
    """Raises LineamentError, without the password, for an address that cannot be written to."""
    shown, scheme = redacted_spec(url), url.split("://")[0].lower()
    if scheme not in _PORTS:
        known = ", ".join(f"{name}://" for name in _PORTS)
        raise LineamentError(f"cannot write to {shown!r}: unknown protocol; use {known}, virtual:, or a path")
    usual = _PORTS[scheme]
    plain = scheme in ("osc", "openseeface")  # UDP, to a host and a port
    wanted = f"{scheme}://host:{usual}" if plain else f"{scheme}://user:password@host:{usual or 9200}/name"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text may contain the password
        host = port = parts = None
    # urlsplit drops newlines, and everything after a '#'
    if parts is None or not host or not url.isprintable() or any(mark in url for mark in " #\\"):
        raise LineamentError(
            f"{shown!r} is not a valid address; use {wanted}, with %40 for @, %23 for # and %2F for / in the password"
        )
    port = usual if port is None else port
    if port is None:
        raise LineamentError(f"{shown!r} has no port; use {wanted}")
    path = unquote(parts.path).removeprefix("/")
    if not path and scheme not in ("ws", "srt") and not plain:
        raise LineamentError(f"{shown!r} has no stream name or topic after the host; use {wanted}")
    if plain and parts.username is not None:
        raise LineamentError(f"{shown!r} has a user name, which {scheme}:// does not support; use {wanted}")
    if (plain or scheme in ("ws", "mqtt", "mqtts")) and parts.query:
        raise LineamentError(f"{shown!r} has a '?', which {scheme}:// does not support; use {wanted}")
    user, password = (None if text is None else unquote(text) for text in (parts.username, parts.password))
    return Address(url, scheme, user, password, host, port, path)


class Transport(Protocol[T]):
    """Delivers messages. One thread calls connect, send, idle and close; an outage is a LineamentError."""

    def prepare(self) -> None:
        """Raises errors that no retry can fix."""
        ...

    def message(self, result: Result, drawn_bgr: U8) -> T:
        """The part of a result to buffer. Called by the thread that writes."""
        ...

    def connect(self) -> None:
        """Raises RefusedError for a wrong password, after which the next attempt is later."""
        ...

    def send(self, message: T) -> None:
        """Raises within seconds if the receiver accepts nothing."""
        ...

    def idle(self) -> None:
        """Called a few times a second while there is nothing to send."""
        ...

    def close(self) -> None:
        """Disconnects within about a second; also after a failure."""
        ...

    def interrupt(self) -> None:
        """Ends the current call and all later ones with an error. Called by another thread."""
        ...


class Background(Generic[T]):
    """A sink that a transport's outage neither ends nor slows: it buffers the newest messages, drops and counts others.

    It reconnects after a loss, with growing pauses, and logs that once.
    """

    def __init__(self, transport: Transport[T], shown: str, capacity: int) -> None:
        """shown: the address for logs. capacity: messages that may be buffered."""
        self._transport, self._shown = transport, shown
        self._waiting: Mailbox[T] = Mailbox(capacity, newest_wins=True)
        self._failed = 0
        """messages in flight when the connection broke, or not sent in time at the end"""
        self._closing = threading.Event()
        self._fault: BaseException | None = None
        self._backoff = Backoff()
        self._pause_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"publish {shown}", daemon=True)

    @property
    def lost(self) -> int:
        return self._waiting.dropped + self._failed

    def __enter__(self) -> Self:
        """Raises errors that no retry can fix; an unreachable receiver is not an error."""
        self._transport.prepare()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, result: Result, drawn_bgr: U8) -> None:
        """Never blocks. drawn_bgr: kept, so it must not change later."""
        if self._fault is not None:
            raise self._fault
        if self._thread.ident is None or self._closing.is_set():
            raise RuntimeError(f"{self._shown} is not open; use it in a with block")
        with contextlib.suppress(Closed):  # an error has just ended the thread: the next call raises it
            self._waiting.put(self._transport.message(result, drawn_bgr))

    def close(self) -> None:
        """Allows a second to send what is buffered, then ends the thread."""
        self._closing.set()
        self._waiting.close()
        if self._thread.ident is None:
            return
        self._thread.join(_FINISH_S)
        if self._thread.is_alive():
            self._transport.interrupt()
            self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.warning("%s does not answer; its thread keeps running in the background", self._shown)

    def _run(self) -> None:
        try:
            while not self._served():
                if self._closing.wait(self._pause_s):
                    break
        except BaseException as error:  # raised by the next write
            self._fault = error
            log.exception("sending to %s ended by an internal error", self._shown)
        finally:
            self._waiting.close()
            self._failed += len(self._waiting)

    def _served(self) -> bool:
        """Sends until close; returns False if the connection was lost before."""
        try:
            self._transport.connect()
            while True:
                self._send_next()
        except Closed:
            return True
        except LineamentError as error:
            if self._closing.is_set():
                return True
            self._lose(error)
            return False
        finally:
            self._transport.close()

    def _send_next(self) -> None:
        try:
            message = self._waiting.take(_IDLE_S)
        except TimeoutError:
            self._transport.idle()
            return
        try:
            self._transport.send(message)
        except LineamentError:
            self._failed += 1
            raise
        if not self._backoff.is_up:
            self._come_up()

    def _come_up(self) -> None:
        down_s, event = self._backoff.come_up(), {"output": self._shown, "event": "output_up"}
        if down_s is None:
            log.info("sending to %s", self._shown, extra=event)
            return
        log.warning("%s is back after %.1f s; %d results lost", self._shown, down_s, self.lost, extra=event)

    def _lose(self, error: LineamentError) -> None:
        """Logs the loss and sets the pause before the next attempt."""
        loss = self._backoff.lose(error)
        self._pause_s = loss.pause_s
        if loss.news:
            event = {"output": self._shown, "event": "output_refused" if loss.refused else "output_lost"}
            log.warning("%s; %s", str(error), loss.next_try, extra=event)


def unreachable(address: Address, error: Exception) -> LineamentError:
    """The error for a failed connection attempt."""
    match error:
        case ConnectionRefusedError():
            why = "connection refused; check the port, and that the server is running"
        case ssl.SSLCertVerificationError():
            why = f"its certificate is not trusted ({error.verify_message}); set SSL_CERT_FILE to its issuer's"
        case TimeoutError():
            why = f"no answer for {CONNECT_S:.0f} s; check that it is on, and the address, port and firewall"
        case socket.gaierror() | UnicodeError():
            why = "unknown host name; check it and the network"
        case _:
            why = f"{(getattr(error, 'strerror', None) or type(error).__name__).lower()}; check the network"
    return LineamentError(f"cannot reach {address.shown}: {why}")


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

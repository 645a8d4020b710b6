"""Network: results for other machines, sent by a thread of their own, so that nobody out there holds up a run.

Here are the addresses and the thread with its bounded buffer; media, mqtt and websocket beside it know the ways.
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
}
"""the usual one, by scheme; None where there is none"""
MESSAGES = 64
"""lines of JSON that may wait for a broker, and for each WebSocket client: two seconds of video"""
CONNECT_S = 5.0
"""the longest that a connection may take to be made"""
_IDLE_S = 0.5
"""with nothing to send, the connection is looked after so often"""
_FINISH_S = 1.0
"""at the end, what still waits may take so long to be sent"""
_JOIN_S = 8.0
"""the longest that a thread may take to end once it was interrupted: a connection that is being made fits in"""


@dataclass(frozen=True, slots=True)
class Address:
    """What an output's URL says."""

    url: str
    scheme: str
    user: str | None
    password: str | None
    host: str
    port: int
    path: str
    """decoded, without the first slash"""

    @property
    def shown(self) -> str:
        """What a log may say: never a password."""
        return redacted_spec(self.url)


def parsed(url: str) -> Address:
    """Raises LineamentError, with no password in it, for what this project cannot write to."""
    shown, scheme = redacted_spec(url), url.split("://")[0].lower()
    if scheme not in _PORTS:
        known = ", ".join(f"{name}://" for name in _PORTS)
        raise LineamentError(f"cannot write to {shown!r}: unknown protocol; use {known}, virtual:, or a path")
    usual = _PORTS[scheme]
    wanted = f"{scheme}://user:password@host:{usual or 9200}/name"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text may hold the password
        host = port = parts = None
    # urlsplit drops line ends, and a '#' with all behind it
    if parts is None or not host or not url.isprintable() or any(mark in url for mark in " #\\"):
        raise LineamentError(
            f"{shown!r} is no address; write {wanted}, with %40 for an @, %23 for a # and %2F for a / in the password"
        )
    port = usual if port is None else port
    if port is None:
        raise LineamentError(f"{shown!r} names no port; write {wanted}")
    path = unquote(parts.path).removeprefix("/")
    if not path and scheme != "ws" and scheme != "srt":
        raise LineamentError(f"{shown!r} says the host, but not under which name or topic; write {wanted}")
    if scheme in ("ws", "mqtt", "mqtts") and parts.query:
        raise LineamentError(f"{shown!r} has a '?', which {scheme}:// knows no use for; write {wanted}")
    user, password = (None if text is None else unquote(text) for text in (parts.username, parts.password))
    return Address(url, scheme, user, password, host, port, path)


class Transport(Protocol[T]):
    """Takes messages somewhere. One thread calls connect, send, idle and close; an outage is a LineamentError."""

    def prepare(self) -> None:
        """Raises what no waiting will mend."""
        ...

    def message(self, result: Result, drawn_bgr: U8) -> T:
        """What to keep of a result until its turn comes. Called by the thread that writes."""
        ...

    def connect(self) -> None:
        """Raises RefusedError for a wrong password, which is not tried again soon."""
        ...

    def send(self, message: T) -> None:
        """Raises within seconds when the other side takes nothing."""
        ...

    def idle(self) -> None:
        """Called some times a second while there is nothing to send."""
        ...

    def close(self) -> None:
        """Takes leave, in a second or so; also after a failure."""
        ...

    def interrupt(self) -> None:
        """Ends a call under way, and those that follow, with an error. Called by another thread."""
        ...


class Background(Generic[T]):
    """A sink that a transport's outage neither ends nor slows: the newest messages wait, older ones go and are counted.

    It connects by itself and again after a loss, at longer and longer intervals, and says so once.
    """

    def __init__(self, transport: Transport[T], shown: str, capacity: int) -> None:
        """shown: where it goes, as a log may say it. capacity: messages that may wait."""
        self._transport, self._shown = transport, shown
        self._waiting: Mailbox[T] = Mailbox(capacity, newest_wins=True)
        self._failed = 0
        """messages that were under way when the connection broke, or had no time left at the end"""
        self._closing = threading.Event()
        self._fault: BaseException | None = None
        self._backoff = Backoff()
        self._pause_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"publish {shown}", daemon=True)

    @property
    def lost(self) -> int:
        return self._waiting.dropped + self._failed

    def __enter__(self) -> Self:
        """Raises what no waiting will mend; that the other side is away is no error."""
        self._transport.prepare()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, result: Result, drawn_bgr: U8) -> None:
        """Never waits. drawn_bgr: kept, so not to be changed later."""
        if self._fault is not None:
            raise self._fault
        if self._thread.ident is None or self._closing.is_set():
            raise RuntimeError(f"{self._shown} is not open; use it in a with block")
        with contextlib.suppress(Closed):  # a fault has just ended the thread: the next call says so
            self._waiting.put(self._transport.message(result, drawn_bgr))

    def close(self) -> None:
        """Gives what waits a second to be sent, then ends the thread."""
        self._closing.set()
        self._waiting.close()
        if self._thread.ident is None:
            return
        self._thread.join(_FINISH_S)
        if self._thread.is_alive():
            self._transport.interrupt()
            self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.warning("%s does not answer; its thread is left to end by itself", self._shown)

    def _run(self) -> None:
        try:
            while not self._served():
                if self._closing.wait(self._pause_s):
                    break
        except BaseException as error:  # raised by the next write
            self._fault = error
            log.exception("sending to %s ended by a fault", self._shown)
        finally:
            self._waiting.close()
            self._failed += len(self._waiting)

    def _served(self) -> bool:
        """Sends until it is told to end; False when the other side was lost before."""
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
        log.warning("%s is back after %.1f s; %d were lost", self._shown, down_s, self.lost, extra=event)

    def _lose(self, error: LineamentError) -> None:
        """Says so, and sets the pause before the next try."""
        loss = self._backoff.lose(error)
        self._pause_s = loss.pause_s
        if loss.news:
            event = {"output": self._shown, "event": "output_refused" if loss.refused else "output_lost"}
            log.warning("%s; %s", str(error), loss.next_try, extra=event)


def unreachable(address: Address, error: Exception) -> LineamentError:
    """The user's words for a connection that could not be made."""
    match error:
        case ConnectionRefusedError():
            why = "connection refused; check the port, and that the server runs"
        case ssl.SSLCertVerificationError():
            why = f"its certificate is not trusted ({error.verify_message}); SSL_CERT_FILE may name who signed it"
        case TimeoutError():
            why = f"no answer for {CONNECT_S:.0f} s; check that it is on, and address, port and firewall"
        case socket.gaierror() | UnicodeError():
            why = "the host name is unknown; check it and the network"
        case _:
            why = f"{(getattr(error, 'strerror', None) or type(error).__name__).lower()}; check the network"
    return LineamentError(f"cannot reach {address.shown}: {why}")


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

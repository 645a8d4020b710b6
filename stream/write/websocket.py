"""WebSocket: sends each result's line of JSON to all connected clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import threading
from concurrent.futures import Future
from http import HTTPStatus
from typing import Self
from urllib.parse import unquote

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from lineament.landmarks.types import U8, LineamentError, Result
from lineament.stream.mailbox import Closed, Mailbox
from lineament.stream.write.json_line import JsonLine
from lineament.stream.write.network import CONNECT_S, MESSAGES, Address, is_loopback

log = logging.getLogger(__name__)
_wire_log = logging.getLogger(f"{__name__}.wire")
_wire_log.setLevel(logging.CRITICAL)  # invalid requests of strangers are not worth logging

_LEAVE_S = 1.0
"""timeout for clients to receive what is buffered at the end, and then to close"""
_CLIENTS = 16
"""per port"""
_HEARD_BYTES = 1024
"""messages of clients are ignored; a client that sends a longer one is disconnected"""
_LOCAL_PAGE = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""origins of pages that may connect to a loopback address; all others are sites that the user happens to visit"""


class WebSocketSink:
    """Listens, and sends each result's line of JSON to every client of its path; each client has a bounded buffer.

    Several sinks may share a port under different paths. On a loopback address, only programs on this machine and pages
    served by it may connect; on any other, everyone who can reach it.
    """

    def __init__(self, address: Address, line: JsonLine) -> None:
        self._address, self._line = address, line
        if address.user is not None:
            raise LineamentError(
                f"cannot listen at {address.shown}: passwords are not supported; put a reverse proxy with TLS in front"
            )
        self._clients: set[_Client] = set()
        self._changing = threading.Lock()
        self._lost_by_the_gone = 0
        self._server: _Server | None = None
        self._wake_is_due = False

    @property
    def lost(self) -> int:
        """Messages dropped for slow clients, all clients together."""
        with self._changing:
            return self._lost_by_the_gone + sum(client.lost for client in self._clients)

    @property
    def port(self) -> int:
        """The actual one within the block, if a free one was requested."""
        return self._address.port if self._server is None else self._server.port

    def __enter__(self) -> Self:
        """Raises LineamentError if it cannot listen."""
        self._server = _join_server(self._address, self)
        where = f"{self._address.host}:{self.port}"
        if not is_loopback(self._address.host):
            log.warning("anyone who can reach %s can read the landmarks, without a password", where)
        log.info("landmarks: ws://%s/%s", where, self._address.path)
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, result: Result, drawn_bgr: U8) -> None:
        """Never blocks."""
        server = self._server
        if server is None:
            raise RuntimeError(f"{self._address.shown} is not open; use it in a with block")
        with self._changing:
            clients = list(self._clients)
        if not clients:
            return
        text = self._line(result)
        for client in clients:
            client.put(text)
        if not self._wake_is_due:  # one at a time, so that calls do not pile up in the server's loop
            self._wake_is_due = True
            server.loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Allows clients a second to receive what is buffered, then disconnects them."""
        server, self._server = self._server, None
        if server is not None:
            _leave_server(server, self._address.path)

    async def serve(self, socket: ServerConnection) -> None:
        """Serves one client, in the server's thread."""
        client = _Client(socket)
        with self._changing:
            self._clients.add(client)
        sender = asyncio.create_task(client.send())
        try:
            async for _ in socket:
                pass
        except ConnectionClosed:
            pass
        finally:
            sender.cancel()
            with self._changing:
                self._clients.remove(client)
                self._lost_by_the_gone += client.lost
            client.gone.set()
            if client.lost:
                log.warning("a slow client of %s lost %d messages", self._address.shown, client.lost)

    async def finish(self) -> None:
        """Sends what is buffered and disconnects all clients. In the server's thread."""
        clients = list(self._clients)
        for client in clients:
            client.waiting.close()
        self._wake()
        gone = [asyncio.create_task(client.gone.wait()) for client in clients]
        if gone and (await asyncio.wait(gone, timeout=_LEAVE_S))[1]:
            for client in self._clients:
                client.unsent = len(client.waiting)
                client.socket.transport.abort()
            await asyncio.wait(gone)

    def _wake(self) -> None:
        self._wake_is_due = False
        for client in list(self._clients):
            client.wake.set()


class _Client:
    """One client's buffer; belongs to the server's thread, except for put()."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.waiting: Mailbox[str] = Mailbox(MESSAGES, newest_wins=True)
        self.unsent = 0
        """messages not sent in time at the end"""
        self.wake, self.gone = asyncio.Event(), asyncio.Event()

    @property
    def lost(self) -> int:
        """Messages that were not sent."""
        return self.waiting.dropped + self.unsent

    def put(self, text: str) -> None:
        with contextlib.suppress(Closed):  # it is being disconnected
            self.waiting.put(text)

    async def send(self) -> None:
        """Sends until the mailbox is closed and empty."""
        try:
            while True:
                try:
                    text = self.waiting.take(timeout_s=0)
                except TimeoutError:
                    await self.wake.wait()
                    self.wake.clear()
                else:
                    await self.socket.send(text)  # waits while the client does not read
        except Closed:
            await self.socket.close(CloseCode.GOING_AWAY, "the source has ended")
        except ConnectionClosed:
            pass


class _Server:
    """One port, served by its own thread, for one or more sinks."""

    def __init__(self, address: Address) -> None:
        self.port = address.port
        self.sinks: dict[str, WebSocketSink] = {}
        self.loop: asyncio.AbstractEventLoop
        self._host = address.host
        self._clients = 0
        self._bound: Future[int] = Future()
        self._over: asyncio.Event
        self._thread = threading.Thread(target=self._run, name=f"websocket {address.host}:{self.port}", daemon=True)

    def start(self) -> None:
        """Raises LineamentError if it cannot listen on the port."""
        self._thread.start()
        try:
            self.port = self._bound.result()
        except (OSError, OverflowError, UnicodeError) as error:
            self._thread.join()
            # asyncio's own text repeats the address
            number = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(number) if number and number > 0 else str(error)
            raise LineamentError(
                f"cannot serve on {self._host}:{self.port}: {reason.lower()}; try another port"
            ) from None

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._listen())
        except BaseException as error:  # raised by start()
            if self._bound.done():
                log.exception("the WebSocket server ended by an internal error")
            else:
                self._bound.set_exception(error)

    async def _listen(self) -> None:
        self.loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        local = [None, _LOCAL_PAGE] if is_loopback(self._host) else None
        async with serve(
            self._serve,
            self._host,
            self.port,
            origins=local,
            process_request=self._known,
            compression=None,  # lines are small, a compressor's memory is not
            max_size=_HEARD_BYTES,
            max_queue=1,
            open_timeout=CONNECT_S,
            close_timeout=_LEAVE_S,
            server_header=None,
            logger=_wire_log,
        ) as server:
            self._bound.set_result(next(iter(server.sockets)).getsockname()[1])
            await self._over.wait()

    def _known(self, connection: ServerConnection, request: Request) -> Response | None:
        if _path(request) in self.sinks:
            return None
        return connection.respond(HTTPStatus.NOT_FOUND, "no source under this path\n")

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        sink = self.sinks.get(_path(socket.request))
        if sink is None or self._clients >= _CLIENTS:
            await socket.close(
                CloseCode.TRY_AGAIN_LATER, f"limit of {_CLIENTS} clients reached" if sink else "the source has ended"
            )
            return
        self._clients += 1
        try:
            await sink.serve(socket)
        except Exception:
            log.exception("serving a WebSocket client ended by an internal error")
            raise
        finally:
            self._clients -= 1


_servers: dict[tuple[str, int], _Server] = {}
"""running servers by host and port, shared by sinks"""
_sharing = threading.Lock()


def _join_server(address: Address, sink: WebSocketSink) -> _Server:
    key = (address.host, address.port)
    with _sharing:
        server = _servers.get(key) if address.port else None
        if server is None:
            server = _Server(address)
            server.start()
            _servers[address.host, server.port] = server
        if address.path in server.sinks:
            raise LineamentError(f"two outputs would listen at {address.shown}; give each its own path")
        server.sinks[address.path] = sink
        return server


def _leave_server(server: _Server, path: str) -> None:
    with _sharing:
        sink = server.sinks.pop(path)
        asyncio.run_coroutine_threadsafe(sink.finish(), server.loop).result()
        if not server.sinks:
            for key in [key for key, other in _servers.items() if other is server]:
                del _servers[key]
            server.stop()


def _path(request: Request) -> str:
    """As in Address.path."""
    return unquote(request.path.partition("?")[0]).removeprefix("/")

"""WebSocket: each result's line of JSON to every client that connects."""

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
_wire_log.setLevel(logging.CRITICAL)  # a stranger that speaks nonsense is no news

_LEAVE_S = 1.0
"""the longest that clients may take to receive what waits for them at the end, and then to close"""
_CLIENTS = 16
"""of one port"""
_HEARD_BYTES = 1024
"""what a client says is read and forgotten; one that says more at once is shown the door"""
_LOCAL_PAGE = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""the origins whose pages may listen at a loopback address; others' are strangers' that the user happens to visit"""


class WebSocketSink:
    """Listens, and sends each result's line of JSON to every client of its path; each has a bounded buffer of its own.

    Several sinks may share a port under different paths. A loopback address is for programs of this machine and pages
    that it serves itself; any other is for whoever reaches it.
    """

    def __init__(self, address: Address, line: JsonLine) -> None:
        self._address, self._line = address, line
        if address.user is not None:
            raise LineamentError(
                f"cannot listen at {address.shown}: it knows no passwords; put a reverse proxy with TLS before it"
            )
        self._clients: set[_Client] = set()
        self._changing = threading.Lock()
        self._lost_by_the_gone = 0
        self._server: _Server | None = None
        self._wake_is_due = False

    @property
    def lost(self) -> int:
        """Messages that were too many for a client, all clients together."""
        with self._changing:
            return self._lost_by_the_gone + sum(client.lost for client in self._clients)

    @property
    def port(self) -> int:
        """The real one within the block, where a free one was asked for."""
        return self._address.port if self._server is None else self._server.port

    def __enter__(self) -> Self:
        """Raises LineamentError where it cannot listen."""
        self._server = _join_server(self._address, self)
        where = f"{self._address.host}:{self.port}"
        if not is_loopback(self._address.host):
            log.warning("anyone who reaches %s may read the landmarks, without a password", where)
        log.info("landmarks: ws://%s/%s", where, self._address.path)
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, result: Result, drawn_bgr: U8) -> None:
        """Never waits."""
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
        if not self._wake_is_due:  # one at a time, so that nothing piles up in the server's thread
            self._wake_is_due = True
            server.loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Gives clients a second to receive what waits for them, then lets them go."""
        server, self._server = self._server, None
        if server is not None:
            _leave_server(server, self._address.path)

    async def serve(self, socket: ServerConnection) -> None:
        """One client's life, in the server's thread."""
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
        """Lets the clients have the rest, and hangs up. In the server's thread."""
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
    """What waits for one client; belongs to the server's thread, but for put()."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.waiting: Mailbox[str] = Mailbox(MESSAGES, newest_wins=True)
        self.unsent = 0
        """messages that had no time left at the end"""
        self.wake, self.gone = asyncio.Event(), asyncio.Event()

    @property
    def lost(self) -> int:
        """Messages that were not sent."""
        return self.waiting.dropped + self.unsent

    def put(self, text: str) -> None:
        with contextlib.suppress(Closed):  # it is being let go
            self.waiting.put(text)

    async def send(self) -> None:
        """Until the mailbox is closed and empty."""
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
    """One port, listened at by a thread of its own, for one or more sinks."""

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
        """Raises LineamentError where the port cannot be had."""
        self._thread.start()
        try:
            self.port = self._bound.result()
        except (OSError, OverflowError, UnicodeError) as error:
            self._thread.join()
            # asyncio's own text says the address once more
            number = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(number) if number and number > 0 else str(error)
            raise LineamentError(f"cannot serve on {self._host}:{self.port}: {reason.lower()}; try another") from None

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._listen())
        except BaseException as error:  # raised by start()
            if self._bound.done():
                log.exception("the WebSocket server ended by a fault")
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
            compression=None,  # lines are small, and a compressor's memory is not
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
        return connection.respond(HTTPStatus.NOT_FOUND, "nothing is sent under this path\n")

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        sink = self.sinks.get(_path(socket.request))
        if sink is None or self._clients >= _CLIENTS:
            await socket.close(CloseCode.TRY_AGAIN_LATER, f"{_CLIENTS} clients are enough" if sink else "it has ended")
            return
        self._clients += 1
        try:
            await sink.serve(socket)
        except Exception:
            log.exception("a WebSocket client ended by a fault")
            raise
        finally:
            self._clients -= 1


_servers: dict[tuple[str, int], _Server] = {}
"""those that listen, by host and port, for sinks that share one"""
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
            raise LineamentError(f"two outputs would listen at {address.shown}; give each a path of its own")
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
    """As Address has it."""
    return unquote(request.path.partition("?")[0]).removeprefix("/")

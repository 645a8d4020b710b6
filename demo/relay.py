"""Relays: FFmpeg talks to this machine alone, and a relay passes on what may pass. Each serves one camera view.

FFmpeg follows redirects and fetches what playlists name, wherever that leads. So it is given the address of a relay,
which makes every connection by demo.reach: redirects are refused, the addresses in a playlist are checked one by one.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Self
from urllib.parse import quote, urljoin

from lineament.demo.reach import Target, connect, resolve
from lineament.landmarks.types import LineamentError

_CHUNK = 65536
_MAX_HEADER = 65536
_MAX_PLAYLIST = 2_000_000
_BAD_PLAYLIST = "the playlist is damaged, or names addresses in a way that is not followed; give another address"
_PRINTABLE = "".join(map(chr, range(33, 127)))
_ACCEPT_TIMEOUT_S = 15.0
_RTSP_HEADER = re.compile(
    rb"(RTSP/\d\.\d [1-6]\d\d( [^\0\r\n]{0,999})?|[A-Z_]{1,99} [^\0\s]{1,2000} RTSP/\d\.\d)"
    rb"(\r\n[^\0\r\n$][^\0\r\n]{0,3999})*"
)
"""FFmpeg ends a line at a line feed alone and a header at a line that begins with NUL, takes a line that begins with $
for a packet, and cuts lines off after 4095 bytes"""


class RtspRelay:
    """One RTSP connection, over TCP. What the server says is read on the way, until it tries to lead elsewhere."""

    def __init__(self, target: Target) -> None:
        self.refused: str | None = None
        """why the relay broke off, for the visitor"""
        self._target = target
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closed = False

    @property
    def url(self) -> str:
        """What FFmpeg is given."""
        user = "" if self._target.user is None else quote(self._target.user, safe="")
        if self._target.password is not None:
            user += ":" + quote(self._target.password, safe="")
        port = self._sockets[0].getsockname()[1]
        return f"rtsp://{user + '@' if user else ''}127.0.0.1:{port}{self._target.rest}"

    def __enter__(self) -> Self:
        """Connects, so that what cannot be reached is told in this module's words."""
        server = connect(self._target)
        door = socket.create_server(("127.0.0.1", 0), backlog=1)
        door.settimeout(_ACCEPT_TIMEOUT_S)
        self._sockets = [door, server]
        self._start(lambda: self._serve(door, server))
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        for end in list(self._sockets):
            _shut(end)
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(timeout=5)

    def _start(self, job: Callable[[], None]) -> None:
        thread = threading.Thread(target=job, name="rtsp relay", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, door: socket.socket, server: socket.socket) -> None:
        try:
            client, _ = door.accept()
        except OSError:
            return
        finally:
            _shut(door)
        self._sockets.append(client)
        if self._closed:  # while the connection came in
            _shut(client)
            return
        self._start(lambda: self._pump(client, server, lambda data: iter((data,))))
        self._pump(server, client, RtspReplies())

    def _pump(self, source: socket.socket, sink: socket.socket, allowed: Callable[[bytes], Iterator[bytes]]) -> None:
        try:
            while data := source.recv(_CHUNK):
                for part in allowed(data):
                    sink.sendall(part)
        except LineamentError as error:
            self.refused = str(error)
        except OSError:
            pass  # closed, or silent for too long: FFmpeg says so
        finally:
            _shut(source)
            _shut(sink)


class RtspReplies:
    """Lets a server's bytes through message by message; raises LineamentError at one that leads elsewhere."""

    def __init__(self) -> None:
        self._held = b""

    def __call__(self, data: bytes) -> Iterator[bytes]:
        self._held += data
        while size := self._complete():
            message, self._held = self._held[:size], self._held[size:]
            yield message

    def _complete(self) -> int:
        """Bytes of the first message held; 0 while it has not all come."""
        held = self._held
        if blank := re.match(rb"[\r\n]+", held):  # FFmpeg, too, takes it for nothing
            return blank.end()
        if held[:1] == b"$":  # a packet of the stream itself: $, channel, length, data
            size = 4 + int.from_bytes(held[2:4], "big") if len(held) >= 4 else 0
            return size if size <= len(held) else 0
        end = held.find(b"\r\n\r\n")
        if end < 0:
            if len(held) > _MAX_HEADER:
                raise LineamentError("the camera does not speak RTSP; check the address")
            return 0
        size = end + 4 + _rtsp_length(held[:end])
        return size if size <= len(held) else 0


def _rtsp_length(header: bytes) -> int:
    """Bytes of the body behind a header that may pass. What FFmpeg could read in another way than here may not."""
    if re.match(rb"\s*RTSP/\S*\s+[+0]*3|\s*REDIRECT\s", header, re.IGNORECASE):
        raise LineamentError("the camera sends on to another address, which is not followed; give that one itself")
    lengths = re.findall(rb"^content-length:(.*)$", header, re.IGNORECASE | re.MULTILINE)
    good = all(re.fullmatch(rb"[ \t]{0,9}\d{1,7}\s{0,9}", length) for length in lengths)
    if not _RTSP_HEADER.fullmatch(header) or len(lengths) > 1 or not good:
        raise LineamentError("the camera does not speak RTSP as it should; check the address")
    return int(lengths[0]) if lengths else 0


class HttpRelay:
    """A web server on this machine alone for one stream: files, endless MJPEG, HLS with all that it names."""

    def __init__(self, target: Target, allow_private: bool) -> None:
        self.refused: str | None = None
        self._allow_private = allow_private
        self._first = f"{target.scheme}://{_host(target)}{target.rest}"
        self._login = None if target.user is None else f"{target.user}:{target.password or ''}"
        self._origin = f"{target.scheme}://{_host(target)}"
        self._secret = secrets.token_urlsafe(12)
        self._server: http.server.ThreadingHTTPServer | None = None
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        if self._server is None:
            raise RuntimeError("the relay is not open; use it in a with block")
        return f"http://127.0.0.1:{self._server.server_port}" + self._path(self._first)

    def __enter__(self) -> Self:
        relay = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 30

            def do_GET(self) -> None:
                relay.serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass  # the addresses carry passwords

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http relay", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()
        for upstream in list(self._open):
            _shut(upstream)

    def serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Answers one request of FFmpeg's; http.server calls it on a thread of its own."""
        try:
            self._answer(request)
        except LineamentError as error:
            self._refuse(request, str(error))
        except ValueError:  # of an address that urllib or http.client cannot send
            self._refuse(request, "the stream names an address that is none; give another one")
        except (OSError, http.client.HTTPException):
            request.close_connection = True

    def _refuse(self, request: http.server.BaseHTTPRequestHandler, why: str) -> None:
        self.refused = why
        with contextlib.suppress(OSError):
            request.send_error(403)

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        prefix = f"/{self._secret}/"
        if not request.path.startswith(prefix):
            request.send_error(404)
            return
        scheme, _, rest = request.path.removeprefix(prefix).partition("/")
        url = f"{scheme}://{rest}"
        target = resolve(url, self._allow_private)
        if target.scheme not in ("http", "https"):
            raise LineamentError("the stream names an address that is not http or https; that is not followed")
        upstream = http.client.HTTPConnection(target.host, target.port)
        upstream.sock = connect(target)
        self._open.add(upstream.sock)
        held = upstream.sock
        try:
            headers = {"Host": _host(target), "User-Agent": "Lineament", "Accept": "*/*", "Connection": "close"}
            if self._login and url.startswith(self._origin + "/"):
                headers["Authorization"] = "Basic " + base64.b64encode(self._login.encode()).decode()
            if asked := request.headers.get("Range"):
                headers["Range"] = asked
            upstream.request("GET", target.rest, headers=headers)
            self._pass_on(request, upstream.getresponse(), url)
        finally:
            self._open.discard(held)
            upstream.close()

    def _pass_on(self, request: http.server.BaseHTTPRequestHandler, reply: http.client.HTTPResponse, url: str) -> None:
        if 300 <= reply.status < 400:
            raise LineamentError("the server sends on to another address, which is not followed; give that one itself")
        start = b""
        reply_length = reply.getheader("Content-Length")
        if reply.status < 300 and not _is_later_range(request, reply):
            start = _beginning(reply)
            if start.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"#EXTM3U"):
                start = self._rewritten(start + reply.read(_MAX_PLAYLIST), url)
                reply_length = str(len(start))
            elif not _is_stream(start, reply.getheader("Content-Type", "")):
                raise LineamentError("the address leads to no video; check the path, or open it in a browser")
        elif reply.status < 300:
            start = reply.read1(_CHUNK)
        request.send_response(reply.status)
        for name in ("Content-Type", "Content-Range", "Accept-Ranges"):
            if value := reply.getheader(name):
                request.send_header(name, value.replace("\r", "").replace("\n", ""))
        if reply_length is not None:
            request.send_header("Content-Length", reply_length)
        request.send_header("Connection", "close")
        request.end_headers()
        while start:
            request.wfile.write(start)
            start = reply.read1(_CHUNK)

    def _rewritten(self, playlist: bytes, url: str) -> bytes:
        """A playlist whose every address leads through this relay; one that can be read in two ways is refused."""
        text = playlist.decode("utf-8-sig", "replace").strip()
        if len(playlist) > _MAX_PLAYLIST or not re.fullmatch(r"[\t\r\n\x20-\x5b\x5d-\x7e\xa0-\U0010ffff]*", text):
            raise LineamentError(_BAD_PLAYLIST)
        lines = []
        for line in re.split(r"[\r\n]+", text):
            if line.startswith("#"):
                # what is decrypted there could not be judged here
                if re.match(r"#EXT-X-KEY:(?!METHOD=NONE\s*$)", line):
                    raise LineamentError("the stream is encrypted, which is not opened here; give an open one")
                if line.startswith("#EXT-X-") and "URI=" in line:
                    line = self._attributes(line, url)
            elif line.strip():
                line = self._path(_absolute(url, line.strip()))
            lines.append(line)
        return ("\n".join(lines) + "\n").encode()

    def _attributes(self, line: str, url: str) -> str:
        """A line of KEY=value whose URI leads through this relay."""
        value = r'"[^"]*"|[^",\s]*'
        if not re.fullmatch(rf"#EXT-X-[A-Z-]+:[ \t]*([A-Z0-9-]+=({value})(,[ \t]*|[ \t]*$))*", line):
            raise LineamentError(_BAD_PLAYLIST)

        def led(attribute: re.Match[str]) -> str:
            key, value = attribute[1], attribute[2]
            if key != "URI":
                return attribute[0]
            if not value.startswith('"'):
                raise LineamentError(_BAD_PLAYLIST)
            return f'URI="{self._path(_absolute(url, value[1:-1]))}"'

        return re.sub(rf"([A-Z0-9-]+)=({value})", led, line)

    def _path(self, url: str) -> str:
        """Where this relay serves an address of the wide world; what is none is refused when it is asked for."""
        scheme, _, rest = url.partition("://")
        return f"/{self._secret}/{quote(scheme, safe='')}/{quote(rest, safe=_PRINTABLE)}"


def _absolute(url: str, named: str) -> str:
    try:
        return urljoin(url, named)
    except ValueError:
        raise LineamentError(_BAD_PLAYLIST) from None


def _is_later_range(request: http.server.BaseHTTPRequestHandler, reply: http.client.HTTPResponse) -> bool:
    """Whether a reply is the later part of a file that was asked for, not its beginning."""
    asked = re.fullmatch(r"bytes=0*([1-9]\d*)-\d*", request.headers.get("Range", ""))
    told = re.match(r"bytes (\d+)-", reply.getheader("Content-Range", ""))
    return reply.status == 206 and asked is not None and told is not None and int(asked[1]) == int(told[1])


def _beginning(reply: http.client.HTTPResponse) -> bytes:
    """Of a body, as much as tells what it is, however small the pieces are that it comes in.

    FFmpeg looks for text up to the first NUL, which comes soon in every video.
    """
    start = bytearray()
    ended = False
    while not ended and len(start) < _MAX_PLAYLIST:
        piece = reply.read1(_CHUNK)
        start += piece
        ended = not piece or (len(start) >= 32 and b"\0" in start[-len(piece) - 32 :])
    return bytes(start)


def _is_stream(start: bytes, content_type: str) -> bool:
    """Whether a body begins as video or pictures do, and not as a list of further addresses."""
    known = (
        start[:1] == b"\x47"  # MPEG-TS
        or start[4:8] in (b"ftyp", b"styp", b"moof", b"moov", b"sidx", b"mdat", b"free")  # MP4
        or start.startswith((b"\xff\xd8", b"\x1aE\xdf\xa3", b"FLV", b"\x89PNG", b"RIFF", b"GIF8", b"OggS"))
        or (content_type.lower().startswith("multipart/x-mixed-replace") and start.lstrip(b"\r\n").startswith(b"--"))
    )
    # FFmpeg knows SDP and DASH, which name addresses, by words that may stand further on
    return known and not re.search(rb"c=IN IP|<MPD", start.partition(b"\0")[0], re.IGNORECASE)


def _host(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"{host}:{target.port}"


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()

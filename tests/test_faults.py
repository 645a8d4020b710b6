"""Faults between a camera and us: lost and garbled packets, stalls, resets, endless and trickling answers, and lures.

Not shown again is what test_reconnect.py and test_source.py show: a killed, frozen, silent or babbling server, a wrong
password, a black hole, another size and codec.
"""

from __future__ import annotations

import random
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from lineament.landmarks.types import Frame, LineamentError, Result
from lineament.stream.read.open import open_source
from lineament.stream.read.reconnect import ReconnectingSource, RetryConfig
from lineament.stream.read.sample import Sample
from lineament.stream.read.video import VideoSource
from lineament.stream.run.pipeline import Pipeline
from tests.rtsp import Fault, rtsp_server, tcp_relay, tcp_server
from tests.waiting import WAIT_S, beside

ROOT = Path(__file__).resolve().parent.parent
SIZE_HW = (240, 320)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    threads = set(threading.enumerate())
    yield
    assert [thread.name for thread in threading.enumerate() if thread not in threads] == []


def healing(url: str, timeout_s: float = 5.0) -> ReconnectingSource:
    return ReconnectingSource(
        VideoSource(url, timeout_s, timeout_s), lambda: VideoSource(url, timeout_s, timeout_s),
        RetryConfig(WAIT_S), patient=True,
    )  # fmt: skip


def frames_of(source: ReconnectingSource, n: int) -> list[Frame]:
    """n frames, whose numbers and times go on as if nothing had been."""
    frames = []
    for frame in iter(source.read, None):
        frames.append(frame)
        if len(frames) == n:
            break
    assert [frame.index for frame in frames] == list(range(n))
    times_s = [frame.time_s for frame in frames]
    assert times_s == sorted(set(times_s)) and times_s[0] == 0
    assert all(frame.bgr.shape == (*SIZE_HW, 3) for frame in frames)
    return frames


# ---- datagrams: MPEG-TS over UDP


@contextmanager
def sender(port: int) -> Iterator[None]:
    """Sends the sample to that port as a camera does, 30 frames a second, with a whole picture every 10."""

    def send(stopped: threading.Event) -> None:
        sample, index = Sample(SIZE_HW, noise=0.0), 0
        with av.open(f"udp://127.0.0.1:{port}?pkt_size=1316", "w", format="mpegts") as container:
            stream = container.add_stream(
                "libx264", rate=30, options={"g": "10", "preset": "ultrafast", "tune": "zerolatency"}
            )
            stream.height, stream.width, stream.pix_fmt = *SIZE_HW, "yuv420p"
            while not stopped.wait(1 / 30):
                picture = av.VideoFrame.from_ndarray(sample.render(index % len(sample)), format="bgr24")
                picture.pts = index
                container.mux(stream.encode(picture))
                index += 1

    with beside(send, "sender"):
        yield


@contextmanager
def udp_relay(to: int, fate: Callable[[random.Random, bytes], list[bytes]]) -> Iterator[int]:
    """Its port; what comes there goes on to `to` as fate says: lost, doubled, garbled, later."""
    rng = random.Random(0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.1", 0))
        own.settimeout(0.1)

        def carry(stopped: threading.Event) -> None:
            late: list[bytes] = []
            while not stopped.is_set():
                with suppress(OSError):  # silence, or nobody listens yet
                    data = own.recv(65536)
                    for packet in (*fate(rng, data), *late):
                        own.sendto(packet, ("127.0.0.1", to))
                    # one in ten comes again, behind the one after it
                    late = [data] if rng.random() < 0.1 else []

        with beside(carry, "relay"):
            yield own.getsockname()[1]


def free_port() -> int:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def lose(rng: random.Random, data: bytes) -> list[bytes]:
    return [] if rng.random() < 0.3 else [data]


def garble(rng: random.Random, data: bytes) -> list[bytes]:
    some = bytearray(data)
    if rng.random() < 0.3:
        for _ in range(20):
            some[rng.randrange(len(some))] = rng.randrange(256)
    return [bytes(some)]


@pytest.mark.parametrize("fate", [lose, garble], ids=["30 % are lost, some come twice or late", "30 % are garbled"])
def test_a_stream_of_datagrams_goes_on_though_many_are_bad(fate: Callable[[random.Random, bytes], list[bytes]]) -> None:
    port = free_port()
    with udp_relay(port, fate) as relay, sender(relay), healing(f"udp://127.0.0.1:{port}") as source:
        frames_of(source, 30)
        assert source.live and source.trouble is None


def test_the_pipeline_shows_what_arrives_of_a_bad_stream_and_counts_the_rest() -> None:
    port = free_port()
    with udp_relay(port, lose) as relay, sender(relay):
        source = healing(f"udp://127.0.0.1:{port}")
        shown = []
        with Pipeline(source, lambda frame: Result(frame, ())) as results:
            for result in results:
                shown.append(result.frame.index)
                if len(shown) == 20:
                    break
        assert shown == sorted(set(shown)) and shown[-1] <= 19 + results.dropped


def test_a_stream_of_datagrams_that_ends_is_lost_and_comes_back() -> None:
    port = free_port()
    with healing(f"udp://127.0.0.1:{port}", 1.0) as source:
        with sender(port):
            assert source.read() is not None
        with ExitStack() as stack:
            again = threading.Timer(1.5, lambda: stack.enter_context(sender(port)))
            again.start()
            last = -1
            for frame in iter(source.read, None):
                assert frame.index > last
                last = frame.index
                if source.reconnects:
                    break
            again.join(WAIT_S)


@pytest.mark.skipif(not shutil.which("tc") or not shutil.which("unshare"), reason="needs tc and unshare")
def test_rtsp_goes_on_over_a_network_that_loses_a_third_of_its_packets() -> None:
    lossy = "ip link set lo up && tc qdisc add dev lo root netem loss 30%"
    known = subprocess.run(["unshare", "-n", "sh", "-c", lossy], capture_output=True, text=True, timeout=WAIT_S)
    if known.returncode:
        pytest.skip(f"needs a kernel that loses packets on request: {known.stderr.strip()}")
    code = "from tests import test_faults; test_faults.read_over_a_lossy_network()"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", f"{lossy} && exec {sys.executable} -c '{code}'"],
        cwd=ROOT, capture_output=True, text=True, timeout=4 * WAIT_S,
    )  # fmt: skip
    assert "all read" in done.stdout, done.stderr


def read_over_a_lossy_network() -> None:
    with rtsp_server() as (_, port), healing(f"rtsp://admin:p%40ss@127.0.0.1:{port}/cam", 30.0) as source:
        frames_of(source, 60)
    print("all read")


# ---- RTSP over a bad line


def stall(rng: random.Random, data: bytes) -> Iterator[bytes | float]:
    """In pieces of a few hundred bytes, with pauses now and then."""
    while data:
        size = rng.choice((1, 7, 300, 1400))
        yield data[:size]
        data = data[size:]
        if rng.random() < 0.003:
            yield rng.uniform(0.0, 2.0)


def flip(rng: random.Random, data: bytes) -> Iterator[bytes | float]:
    """Bits of the pictures turn over; the talk before them and the frames' own lengths stay."""
    some = bytearray(data)
    if not data.startswith(b"RTSP/"):
        for _ in range(1 + len(some) // 2000):
            at = rng.randrange(len(some) or 1)
            # not what tells where a packet begins
            if at < len(some) and b"$" not in some[max(0, at - 16) : at + 1]:
                some[at] ^= 1 << rng.randrange(8)
    yield bytes(some)


def garbage(rng: random.Random, data: bytes) -> Iterator[bytes | float]:
    """Once in a while nothing of it is as it was."""
    yield rng.randbytes(len(data)) if not data.startswith(b"RTSP/") and rng.random() < 0.005 else data


@pytest.mark.parametrize("fault", [stall, flip, garbage])
def test_rtsp_goes_on_or_heals_over_a_line_that_stalls_and_garbles(fault: Fault) -> None:
    with (
        rtsp_server() as (_, port),
        tcp_relay(port, fault) as relay,
        healing(f"rtsp://admin:p%40ss@127.0.0.1:{relay}/cam", 2.5 if fault is stall else 1.0) as source,
    ):
        frames_of(source, 30)


def asked(talk: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """It talks once it was asked."""

    def listen(caller: socket.socket) -> None:
        caller.recv(4096)
        talk(caller)

    return listen


def reset(caller: socket.socket) -> None:
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def endless_headers(caller: socket.socket) -> None:
    caller.sendall(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n")
    while True:
        caller.sendall(b"X-More: and more\r\n" * 500)


def one_endless_header(caller: socket.socket) -> None:
    caller.sendall(b"HTTP/1.1 200 OK\r\nX-More: ")
    while True:
        caller.sendall(b"x" * 65536)


def endless_body(caller: socket.socket) -> None:
    caller.sendall(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: 2147483647\r\n\r\n")
    while True:
        caller.sendall(b"x" * 65536)


def endless_playlist(caller: socket.socket) -> None:
    caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\n\r\n#EXTM3U\n")
    while True:
        caller.sendall(b"#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n" * 1000)


def trickle(caller: socket.socket) -> None:
    """A byte at a time, so that data never stops and an answer never comes."""
    answer = b"RTSP/1.0 200 OK\r\n" + b"X-More: and more\r\n" * 1000
    for byte in answer:
        caller.sendall(bytes([byte]))
        time.sleep(0.05)


def redirect_to_itself(caller: socket.socket) -> None:
    port = caller.getsockname()[1]
    caller.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n" % port)


TALKS = [
    reset, endless_headers, one_endless_header, endless_body, endless_playlist, trickle, redirect_to_itself
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
@pytest.mark.parametrize("talk", TALKS)
def test_an_answer_that_never_ends_is_an_error_in_its_time_and_takes_no_memory(
    scheme: str, talk: Callable[[socket.socket], None]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tcp_server(asked(talk)) as port:
        source = VideoSource(f"{scheme}://127.0.0.1:{port}/x.m3u8", 0.7, 0.7)
        began_s = time.monotonic()
        with pytest.raises(LineamentError), source:
            while source.read() is not None:
                pass
        assert time.monotonic() - began_s < WAIT_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000, "kilobytes"


# ---- lures: what a sender asks us to open


@contextmanager
def web(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Its address; answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):
                answer(self)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="web server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WAIT_S)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of this machine that nobody else should make us show."""
    path = tmp_path_factory.mktemp("private") / "a.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for value in range(250):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, np.uint8), "bgr24")))
        container.mux(stream.encode())
    with open_source(str(path)) as source:
        assert len(list(iter(source.read, None))) > 200
    return path


def playlist(segment: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{segment}\n#EXT-X-ENDLIST\n".encode()


LURES = ["file://{}", "file:{}", "{}", "concat:{}", "subfile,,start,0,end,0,,:{}", "async:file:{}", "crypto:file:{}"]


def fails(url: str) -> None:
    """No picture comes of it."""
    with pytest.raises(LineamentError), VideoSource(url, 3.0, 1.0) as source:
        frame = source.read()
        assert frame is None, "a file of this machine was shown"
        raise LineamentError("no frame")


@pytest.mark.parametrize("lure", LURES)
@pytest.mark.parametrize("body", [playlist, lambda segment: f"ffconcat version 1.0\nfile '{segment}'\n".encode()],
                         ids=["playlist", "list of files"])  # fmt: skip
@pytest.mark.parametrize("name", ["a.m3u8", "a.ffconcat"])
def test_a_sender_cannot_name_a_file_of_this_machine(
    private: Path, lure: str, body: Callable[[str], bytes], name: str
) -> None:
    text = body(lure.format(private))

    def over_http(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/vnd.apple.mpegurl")
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)

    with web(over_http) as address:
        fails(f"{address}/{name}")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def over_tcp() -> None:
            caller, _ = listening.accept()
            with caller:
                caller.sendall(text)

        thread = threading.Thread(target=over_tcp, name="sender")
        thread.start()
        fails(f"tcp://127.0.0.1:{listening.getsockname()[1]}/{name}")
        thread.join(WAIT_S)


@pytest.mark.parametrize("lure", LURES)
def test_a_redirect_does_not_lead_to_a_file_of_this_machine(private: Path, lure: str) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", lure.format(private))
        request.send_header("Content-Length", "0")
        request.end_headers()

    with web(answer) as address:
        fails(f"{address}/a.ts")

    def redirect(caller: socket.socket) -> None:
        caller.sendall(b"RTSP/1.0 302 Moved\r\nCSeq: 1\r\nLocation: %s\r\n\r\n" % lure.format(private).encode())

    with tcp_server(asked(redirect)) as port:
        fails(f"rtsp://127.0.0.1:{port}/a.ts")


def test_only_addresses_of_the_network_are_urls(private: Path) -> None:
    for spec in ("subfile,,start,0,end,0,,://{}", "async:file://{}", "concat://{}", "unix://{}", "fd://0", "pipe://0"):
        with pytest.raises(LineamentError, match="unknown protocol; use rtsp://"):
            open_source(spec.format(private)).__enter__()


# ---- a file on a web server


@pytest.mark.parametrize("index_first", [False, True])
@pytest.mark.parametrize("says_length", [False, True])
def test_a_file_with_its_index_at_the_end_on_a_server_without_ranges_says_what_to_do(
    tmp_path: Path, index_first: bool, says_length: bool
) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "qp": "5"})
        stream.height, stream.width, stream.pix_fmt = 480, 640, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(10):  # larger than what FFmpeg keeps, so that it has to go back
            bgr = noise.integers(0, 256, (480, 640, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bgr, format="bgr24")))
        container.mux(stream.encode())
    data = path.read_bytes()

    def whole(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if says_length:
            request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    with web(whole) as address, VideoSource(f"{address}/a.mp4") as source:
        if index_first and says_length:
            assert len(list(iter(source.read, None))) == 10
        elif index_first:  # FFmpeg cannot tell the end of such a file from a cable that was pulled
            with pytest.raises(LineamentError, match=r"after \d+ frames: the connection broke, or the file ended"):
                while source.read() is not None:
                    pass
        else:
            with pytest.raises(LineamentError, match=r"its index is at the end.*\+faststart"):
                source.read()

"""Where a visitor's camera address may lead, and that nothing leads around it."""

from __future__ import annotations

import http.server
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineament.demo.network_camera import NetworkCamera
from lineament.demo.reach import resolve
from lineament.demo.relay import HttpRelay, RtspReplies
from lineament.landmarks.types import LineamentError
from lineament.stream.read.sample import Sample
from tests.demo_files import sample_clip
from tests.waiting import WAIT_S

# ---- addresses


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "concat:a.mp4|b.mp4",
        "udp://239.0.0.1:1234",
        "gopher://example.com/",
        "data:video/mp4;base64,AAAA",
        "rtsp://",
        "http:///x",
        "http://[::1",
        "rtsp://host:port/x",
        "rtsp://host/a b",
        "rtsp://host/a\r\nSETUP x",
        "http://host\\@other/",
        "http://" + "a" * 3000,
        "http://nosuch.invalid/x",
    ],
)
def test_what_is_no_address_of_a_camera_is_refused(url: str) -> None:
    with pytest.raises(LineamentError):
        resolve(url, allow_private=True)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",  # where clouds keep their secrets
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::]",
        "2852039166",  # the same as one number
        "0xa9fea9fe",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
    ],
)
@pytest.mark.parametrize("allow_private", [False, True])
def test_some_addresses_are_never_opened_however_they_are_written(host: str, allow_private: bool) -> None:
    with pytest.raises(LineamentError, match="never opened from here"):
        resolve(f"http://{host}/latest/meta-data", allow_private)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "2130706433",
        "127.1",
        "10.0.0.5",
        "192.168.1.9",
        "192.0.0.9",
        "192.88.99.1",
        "[2002:c058:6301::]",
        "[::ffff:192.88.99.1]",
        "[fec0::1]",
        "[feff::a9fe:a9fe]",
        "[3fff::1]",
        "[fd00::1]",
    ],
)
def test_private_networks_need_a_flag(host: str) -> None:
    with pytest.raises(LineamentError, match="--allow-private"):
        resolve(f"rtsp://{host}/live", allow_private=False)
    assert resolve(f"rtsp://{host}/live", allow_private=True).port == 554


def test_a_public_address_is_taken_apart_and_its_certificate_is_checked() -> None:
    target = resolve("rtsps://ann:p%40ss@93.184.216.34/live?x=1", allow_private=False)
    assert (target.ip, target.port, target.user, target.password) == ("93.184.216.34", 322, "ann", "p@ss")
    assert target.rest == "/live?x=1" and target.verify


def test_a_name_with_one_bad_address_among_good_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(host: str, port: int, **kind: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("93.184.216.34", "169.254.169.254")]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with pytest.raises(LineamentError, match=r"169\.254\.169\.254"):
        resolve("http://camera.example/x", allow_private=True)


# ---- RTSP


def _message(start: bytes, body: bytes = b"") -> bytes:
    return start + b"\r\nCSeq: 1\r\nContent-Length: %d\r\n\r\n" % len(body) + body


TALK = (
    _message(b"RTSP/1.0 200 OK", b"v=0\r\n\r\nRTSP/1.0 302 only text\r\n\r\n")
    + b"$\x00\x00\x04abcd"
    + _message(b"RTSP/1.0 200 OK")
)


@given(st.lists(st.integers(0, len(TALK)), max_size=8).map(sorted))
def test_what_a_camera_says_comes_through_whole_however_it_is_cut(cuts: list[int]) -> None:
    replies = RtspReplies()
    parts = [TALK[a:b] for a, b in zip([0, *cuts], [*cuts, len(TALK)])]
    assert b"".join(message for part in parts for message in replies(part)) == TALK


@pytest.mark.parametrize(
    "start",
    [
        b"RTSP/1.0 302 Moved",
        b"rtsp/1.0 301 Moved",
        b"REDIRECT rtsp://x RTSP/1.0",
        b"RTSP/1.0  302 Moved",
        b"RTSP/1.0\t302 Moved",
        b"RTSP/1.0 0302 Moved",
        b"RTSP/1.0 +302 Moved",
        b"RTSP/ 302",
        b" RTSP/1.0 302 Moved",
    ],
)
def test_a_camera_that_sends_elsewhere_is_not_followed(start: bytes) -> None:
    replies = RtspReplies()
    with pytest.raises(LineamentError, match="not followed"):
        list(replies(TALK + _message(start)))


MOVED = b"RTSP/1.0 302 Moved\r\nLocation: rtsp://127.0.0.1/secret\r\n\r\n"


@pytest.mark.parametrize(
    "hiding",
    [
        b"RTSP/1.0 200 OK\r\nCSeq: 1\n\n" + MOVED,
        b"RTSP/1.0 200 OK\r\nCSeq: 1\n\r\r\n" + MOVED,
        b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\0\r\n" + MOVED,
        b"RTSP/1.0 200 OK\r\n$\0\0\x08\r\n\r\n1234" + MOVED,
        b"RTSP/1.0 200 OK\r\nContent-Length: %d\r\nContent-Length: 0\r\n\r\n" % len(MOVED) + MOVED,
        b"RTSP/1.0 200 OK\r\nContent-Length: %d \n0\r\n\r\n" % len(MOVED) + MOVED,
        b"RTSP/1.0 200 OK\r\nContent-Length:%s%d\r\n\r\n" % (b" " * 5000, len(MOVED)) + MOVED,
        b"RTSP/1.0 200 OK\r\nContent-Length: -1\r\n\r\n" + MOVED,
        b"RTSP/1.0 2e2 OK\r\n\r\n",
        b"hello\r\n\r\n",
    ],
)
def test_a_message_that_can_be_read_in_two_ways_does_not_come_through(hiding: bytes) -> None:
    with pytest.raises(LineamentError, match="does not speak RTSP as it should"):
        list(RtspReplies()(hiding))


def test_a_body_is_waited_for_and_blank_lines_between_messages_pass() -> None:
    replies = RtspReplies()
    assert list(replies(b"RTSP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n1234")) == []
    assert len(list(replies(b"56789\r\n\r\n$\0\0\x02ab" + _message(b"ANNOUNCE rtsp://x/a RTSP/1.0")))) == 4


def test_a_server_that_speaks_no_rtsp_is_cut_off() -> None:
    with pytest.raises(LineamentError, match="does not speak RTSP"):
        list(RtspReplies()(b"x" * 100_000))


def test_an_rtsp_camera_comes_through_the_relay_and_closing_ends_all_of_it(
    rtsp: tuple[subprocess.Popen[str], int],
) -> None:
    _, port = rtsp
    with NetworkCamera(f"rtsp://admin:p%40ss@127.0.0.1:{port}/cam", allow_private=True) as camera:
        frames = [camera.read() for _ in range(3)]
        assert all(frame is not None and frame.bgr.shape == (240, 320, 3) for frame in frames)
        assert "p%40ss" not in camera.name
    assert camera.read() is None
    assert not _relays()
    with pytest.raises(LineamentError, match="401"), NetworkCamera(f"rtsp://admin:wrong@127.0.0.1:{port}/cam", True):
        pass
    assert not _relays()


def _relays() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "relay" in thread.name]


# ---- HTTP


class Web:
    """A small web server: path to (status, headers, body), and what was asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[str] = []
        self.agents: set[str] = set()
        """who asked: the relay, or FFmpeg around it"""
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                web.agents.add(self.headers.get("User-Agent", ""))
                status, headers, body = web.pages.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever, args=(0.05,))
    thread.start()
    yield web
    web.server.shutdown()
    web.server.server_close()
    thread.join()


def refusal(url: str) -> str:
    with pytest.raises(LineamentError) as failure, NetworkCamera(url, allow_private=True) as camera:
        while camera.read() is not None:
            pass
    return str(failure.value)


def test_a_recording_on_a_web_server_comes_through_the_relay(web: Web, tmp_path: Path) -> None:
    clip = sample_clip(tmp_path / "a.mp4", frames=5, size_hw=(120, 160))
    web.pages["/a.mp4?key=1"] = (200, {"Content-Type": "video/mp4"}, clip.read_bytes())
    with NetworkCamera(f"{web.url}/a.mp4?key=1", allow_private=True) as camera:
        assert [frame.index for frame in iter(camera.read, None)] == [0, 1, 2, 3, 4]


def test_a_stream_of_jpegs_comes_through_the_relay(web: Web) -> None:
    sample = Sample(size_hw=(120, 160))
    jpegs = [cv2.imencode(".jpg", sample.render(index))[1].tobytes() for index in range(8)]
    body = b"".join(b"--cut\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n" for jpeg in jpegs)
    web.pages["/video"] = (200, {"Content-Type": "multipart/x-mixed-replace; boundary=cut"}, body)
    with NetworkCamera(f"{web.url}/video", allow_private=True) as camera:
        frame = camera.read()
        assert frame is not None and frame.bgr.shape == (120, 160, 3)


def test_frames_of_a_camera_that_are_too_large_are_passed_over_undecoded(web: Web) -> None:
    jpegs = [cv2.imencode(".jpg", np.zeros((side, side, 3), np.uint8))[1].tobytes() for side in (64, 400)]
    body = b"".join(b"--cut\r\nContent-Type: image/jpeg\r\n\r\n" + jpegs[i % 2] + b"\r\n" for i in range(8))
    web.pages["/video"] = (200, {"Content-Type": "multipart/x-mixed-replace; boundary=cut"}, body)
    with NetworkCamera(f"{web.url}/video", allow_private=True, max_pixels=10_000) as camera:
        for _ in range(3):
            frame = camera.read()
            assert frame is not None and frame.bgr.shape == (64, 64, 3)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(web: Web, status: int) -> None:
    web.pages["/camera"] = (status, {"Location": f"{web.url}/secret"}, b"")
    assert "not followed" in refusal(f"{web.url}/camera")
    assert web.asked == ["/camera"]


@pytest.mark.parametrize(
    "named",
    ["file:///etc/passwd", "http://169.254.169.254/latest/meta-data.ts", "gopher://127.0.0.1/x.ts", "crypto+file:///x"],
)
def test_a_playlist_cannot_lead_elsewhere(web: Web, named: str) -> None:
    web.pages["/live.m3u8"] = (
        200,
        {"Content-Type": "application/vnd.apple.mpegurl"},
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{named}\n#EXT-X-ENDLIST\n".encode(),
    )
    assert refusal(f"{web.url}/live.m3u8")
    assert set(web.asked) == {"/live.m3u8"}


HEAD = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:2\n"
SEGMENT = "#EXTINF:2,\n{web}/named.ts\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("#EXT-X-MAP:URI={web}/named\n" + SEGMENT, "damaged"),
        ('#EXT-X-MAP:X=aURI="b,URI="{web}/named"\n' + SEGMENT, "damaged"),
        ('#EXT-X-MAP:X="a",URI="{web}/named\n' + SEGMENT, "damaged"),
        ('#EXT-X-MAP:X="a\\",URI="b",URI="{web}/named"\n' + SEGMENT, "damaged"),
        ("#EXT-X-KEY:METHOD=AES-128,URI={web}/named\n" + SEGMENT, "encrypted"),
        ('#EXT-X-KEY:METHOD=AES-128,URI="{web}/named"\n' + SEGMENT, "encrypted"),
        ("#EXTINF:2,\n#x\0{web}/named.ts\n#EXT-X-ENDLIST\n", "damaged"),
        ("#EXTINF:2,\nhttp://[/named.ts\n#EXT-X-ENDLIST\n", "damaged"),
        ("#" * 2_000_000 + "\n" + SEGMENT, "damaged"),
    ],
)
def test_a_playlist_that_can_be_read_in_two_ways_is_refused(web: Web, lines: str, says: str) -> None:
    web.pages["/live.m3u8"] = (200, {}, (HEAD + lines.replace("{web}", web.url)).encode())
    assert says in refusal(f"{web.url}/live.m3u8")
    assert web.asked == ["/live.m3u8"]


@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize("kind", ["application/vnd.apple.mpegurl", "multipart/x-mixed-replace", "video/mp2t"])
@pytest.mark.parametrize("piece", [3, 4096])
def test_a_playlist_is_known_as_one_whatever_it_comes_as(web: Web, status: int, kind: str, piece: int) -> None:
    """Then what it names is asked for by the relay, and not by FFmpeg."""
    body = (HEAD + SEGMENT.replace("{web}", web.url)).encode()
    cut = [body[at : at + piece] for at in range(0, len(body), piece)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*cut, b""])
    web.pages["/live.m3u8"] = (status, {"Content-Type": kind, "Transfer-Encoding": "chunked"}, chunks)
    assert refusal(f"{web.url}/live.m3u8")
    assert web.asked[:2] == ["/live.m3u8", "/named.ts"] and web.agents == {"Lineament"}


def test_a_playlist_may_name_its_parts_with_any_letter(web: Web) -> None:
    web.pages["/live.m3u8"] = (200, {}, (HEAD + "#EXTINF:2,\nvid\u00e9o 1.ts\n#EXT-X-ENDLIST\n").encode())
    assert refusal(f"{web.url}/live.m3u8")
    assert web.asked[1] == "/vid%C3%A9o%201.ts"


def test_an_address_that_cannot_be_sent_is_refused(web: Web) -> None:
    with HttpRelay(resolve(f"{web.url}/x", True), True) as relay:
        where = urlsplit(relay.url)
        with socket.create_connection(("127.0.0.1", where.port or 0), timeout=WAIT_S) as client:
            client.sendall(f"GET {where.path}\u00e9 HTTP/1.0\r\n\r\n".encode("latin-1"))
            assert b" 403 " in client.makefile("rb").readline()
        assert relay.refused is not None and "an address that is none" in relay.refused


SDP = b"c=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
DASH = b'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"></MPD>'


@pytest.mark.parametrize("text", [SDP, DASH, SDP.replace(b"IN", b"IN IP4 1\nc=IN")])
@pytest.mark.parametrize("sign", [b"G", b"RIFF", b"GIF89a", b"--cut", b"\x1aE\xdf\xa3"])
def test_a_list_of_addresses_that_begins_as_a_video_does_is_refused(web: Web, sign: bytes, text: bytes) -> None:
    web.pages["/x"] = (200, {"Content-Type": "multipart/x-mixed-replace"}, sign + b"\n" * 200 + text)
    assert "no video" in refusal(f"{web.url}/x")


def test_a_playlist_of_its_own_server_is_played(web: Web, tmp_path: Path) -> None:
    clip = sample_clip(tmp_path / "a.mp4", frames=10, size_hw=(120, 160))
    with av.open(str(clip)) as source, av.open(str(tmp_path / "a.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    web.pages["/live.m3u8"] = (
        200,
        {},
        b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.33,\na.ts\n#EXT-X-ENDLIST\n",
    )
    web.pages["/a.ts"] = (200, {"Content-Type": "video/mp2t"}, (tmp_path / "a.ts").read_bytes())
    with NetworkCamera(f"{web.url}/live.m3u8", allow_private=True) as camera:
        assert camera.read() is not None


@pytest.mark.parametrize(
    "body", [b"<html>secret</html>", b"ffconcat version 1.0\nfile '/etc/passwd'\n", b"", b"v=0\r\n"]
)
def test_what_is_no_video_is_not_handed_to_the_decoder(web: Web, body: bytes) -> None:
    web.pages["/x.mp4"] = (200, {"Content-Type": "text/html"}, body)
    assert "no video" in refusal(f"{web.url}/x.mp4")


def test_a_closed_port_and_a_silent_one_are_told_apart() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert "refuses the connection" in refusal(f"rtsp://127.0.0.1:{taken.getsockname()[1]}/x")

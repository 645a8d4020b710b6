"""Media: drawn frames to a media server, as H.264, or to a virtual camera on this machine.

Both are transports for Background in network.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import av.error

from lineament.landmarks.types import U8, LineamentError, Result
from lineament.stream import FOUND_IN
from lineament.stream.backoff import RefusedError
from lineament.stream.write import relay
from lineament.stream.write.encode import even, i420, letterboxed
from lineament.stream.write.network import CONNECT_S, Address, unreachable

log = logging.getLogger(__name__)

Picture = tuple[float, U8]
"""seconds, (H, W, 3) BGR"""

PICTURES = 4
"""buffered for a slow server: 25 MB at 1920x1080"""
_LEAVE_S = 1.0
"""timeout to disconnect"""


class MediaServer:
    """A transport of frames to an RTSP or RTMP server, as H.264. A separate process writes; relay.py says why."""

    def __init__(self, address: Address, fps: float | None) -> None:
        self._address, self._fps = address, fps
        self._process: subprocess.Popen[bytes] | None = None
        self._size_hw: tuple[int, int] | None = None
        """announced to the process; None before its first frame"""
        self._interrupted = False
        self._changing = threading.Lock()

    def prepare(self) -> None:
        if self._address.scheme == "srt":
            try:
                av.open("srt://", "w", format="mpegts").close()
            except av.error.ProtocolNotFoundError:
                raise LineamentError(
                    f"cannot write to {self._address.shown}: the FFmpeg inside PyAV {av.__version__} has no SRT; "
                    "use rtsp:// or rtmp://"
                ) from None
            except av.error.FFmpegError:  # only the address is missing
                pass

    def message(self, result: Result, drawn_bgr: U8) -> Picture:
        return result.frame.time_s, drawn_bgr

    def connect(self) -> None:
        """Checks that the server can be reached, and starts the process. Raises LineamentError once interrupted."""
        if self._address.scheme != "srt":
            try:
                socket.create_connection((self._address.host, self._address.port), CONNECT_S).close()
            except (OSError, UnicodeError) as error:
                raise unreachable(self._address, error) from None
        self._size_hw = None
        with self._changing:
            if self._interrupted:
                raise LineamentError(f"{self._address.shown} was not reached before the end")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lineament.stream.write.relay"],
                cwd=FOUND_IN,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )

    def send(self, message: Picture) -> None:
        """The first frame also announces the size of all, and waits until the server has it."""
        time_s, bgr = message
        process, first = self._process, self._size_hw is None
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            if self._size_hw is None:
                self._size_hw = even(bgr)
                order = relay.Order(self._address.url, self._fps, *self._size_hw)
                process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            process.stdin.write(relay.STAMP.pack(time_s))
            process.stdin.write(i420(bgr, self._size_hw).data)
            process.stdin.flush()
        except OSError:
            raise self._failure(process.stdout.read()) from None
        if first and (answer := process.stdout.readline()) != b"up\n":
            raise self._failure(answer)

    def idle(self) -> None: ...

    def close(self) -> None:
        """The process disconnects from the server, and is killed after a second."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def interrupt(self) -> None:
        with self._changing:
            self._interrupted, process = True, self._process
        if process is not None:
            process.kill()

    def _failure(self, answer: bytes) -> LineamentError:
        """The error for the process's last words."""
        kind = answer.decode().strip()
        why = _WHY.get(kind, "the connection broke; check that the server is running and accepts H.264")
        if not kind:
            why = f"no data accepted for {relay.STUCK_S} s; check the server and the network"
        refused = kind in ("HTTPUnauthorizedError", "HTTPForbiddenError")
        return (RefusedError if refused else LineamentError)(f"cannot publish to {self._address.shown}: {why}")


_WHY = {
    "HTTPUnauthorizedError": "wrong user name or password (401); use scheme://user:password@host, with %40 for @ in it",
    "HTTPForbiddenError": "the server forbids it (403); check the account's rights",
    "HTTPNotFoundError": "the server accepts no stream of this name (404); check the path after the host",
    "HTTPBadRequestError": "the server refuses it (400); check that it accepts published streams",
    "InvalidDataError": "invalid answer; check that this is the server's port",
    "ProtocolNotFoundError": "the FFmpeg inside PyAV does not support this protocol",
}
"""by the name of FFmpeg's error, whose own text contains the address"""


class VirtualCamera:
    """A transport of frames to a virtual camera that other programs on this machine can select, by pyvirtualcam."""

    def __init__(self, device: str, fps: float | None) -> None:
        """device: empty for the first free one."""
        self._device, self._fps = device, fps
        self._camera: Any = None

    def prepare(self) -> None:
        try:
            import pyvirtualcam  # type: ignore[import-untyped]  # noqa: F401
        except ImportError:
            raise LineamentError("a virtual camera needs pyvirtualcam; run: pip install pyvirtualcam==0.15.0") from None
        if sys.platform != "linux":
            return
        found = sorted(f"/dev/{path.name}" for path in Path("/sys/devices/virtual/video4linux").glob("video*"))
        if not found or (self._device and self._device not in found):
            raise LineamentError(
                f"no virtual camera {self._device or 'on this machine'}; found {', '.join(found) or 'none'}; "
                "run: sudo apt-get install v4l2loopback-dkms && sudo modprobe v4l2loopback exclusive_caps=1"
            )

    def message(self, result: Result, drawn_bgr: U8) -> Picture:
        return result.frame.time_s, drawn_bgr

    def connect(self) -> None: ...

    def send(self, message: Picture) -> None:
        import pyvirtualcam

        _, bgr = message
        try:
            if self._camera is None:
                height, width = even(bgr)
                self._camera = pyvirtualcam.Camera(
                    width, height, self._fps or 30.0, fmt=pyvirtualcam.PixelFormat.BGR, device=self._device or None
                )
                log.info("the virtual camera is %s", self._camera.device)
            self._camera.send(letterboxed(bgr, self._camera.width, self._camera.height))
        except (RuntimeError, OSError) as error:
            raise LineamentError(f"cannot write to the virtual camera: {error}") from None

    def idle(self) -> None: ...

    def close(self) -> None:
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.close()

    def interrupt(self) -> None:
        """A device accepts a frame at once or fails."""

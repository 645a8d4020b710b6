"""The live views: WebSockets that carry frames one way and points the other. Owns the state of each open view.

    webcam   page --JPEG--> server --points--> page, which draws them on the frame that it sent
    camera   server --JPEG and points--> page, which draws them and requests the next

In both, a frame is sent only when the previous one is done: none waits in a queue, so a slow connection or a busy
machine lowers the frame rate, not the freshness. All state of a view ends with its socket.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from lineament.demo.analyst import Analyst
from lineament.demo.config import DemoConfig
from lineament.demo.guard import from_own_page
from lineament.demo.models import Models
from lineament.demo.network_camera import NetworkCamera
from lineament.demo.settings import Settings
from lineament.demo.uploads import decode_frame
from lineament.demo.visitors import Admission
from lineament.landmarks.types import Frame, LineamentError, Result
from lineament.stream.run.pipeline import Pipeline
from lineament.stream.write.json_line import result_json

IDLE_S = 300.0
"""timeout of a silent view; the page reconnects when it is visible again"""
_JPEG_QUALITY = 80
_CAMERA_LONG_SIDE = 960
"""of a network camera's frame as sent to the page, px; larger ones are scaled down"""
_REFUSED, _FULL = 4403, 4429
"""WebSocket close codes that the page handles"""


class LiveViews:
    """Serves the sockets. One instance for all visitors; the state of a view is local to the call that serves it."""

    def __init__(self, models: Models, admission: Admission, cfg: DemoConfig, workers: int) -> None:
        """workers: frames analysed at the same time, of all visitors together."""
        self._models, self._admission, self._cfg = models, admission, cfg
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="live")
        # opening a camera takes seconds and must not block the frames of webcams
        self._waiters = ThreadPoolExecutor(cfg.limits.visitors, thread_name_prefix="camera")

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._waiters.shutdown(wait=False, cancel_futures=True)

    async def webcam(self, socket: WebSocket) -> None:
        if not await self._admitted(socket):
            return
        analyst, index, began_s = Analyst(self._models, Settings()), 0, time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            while True:
                message = await asyncio.wait_for(socket.receive(), IDLE_S)
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    if (data := message.get("bytes")) is not None:
                        reply = await loop.run_in_executor(
                            self._workers, _analysed, analyst, data, index, time.monotonic() - began_s
                        )
                        index += 1
                        await socket.send_text(reply)
                    else:
                        analyst.settings = _changed(analyst.settings, message.get("text") or "")
                except LineamentError as error:
                    await socket.send_text(json.dumps({"error": str(error)}))
        except (WebSocketDisconnect, TimeoutError):
            pass
        finally:
            await self._release(socket, analyst)

    async def camera(self, socket: WebSocket) -> None:
        """First message: {"url": ..., settings}. Later ones: settings, or {"next": true} to request a frame."""
        if not await self._admitted(socket):
            return
        analyst = Analyst(self._models, Settings())
        try:
            if not self._cfg.camera_tab:
                raise LineamentError("network cameras are disabled; start the demo with --auth to enable them")
            if not from_own_page(socket.headers, self._cfg.login is not None, self._cfg.own_host):
                raise LineamentError(
                    "network cameras can be opened from the demo's own page only; "
                    "use the address that the demo printed, start it with --auth, and behind a proxy with --root-path"
                )
            first = _object(await asyncio.wait_for(socket.receive_text(), IDLE_S))
            url = first.pop("url", None)
            if not isinstance(url, str):
                raise LineamentError("the camera address is missing; enter rtsp://user:password@host/path")
            analyst.settings = analyst.settings.changed(first)
            max_pixels = int(self._cfg.limits.clip_megapixels * 1e6)
            await self._show(socket, NetworkCamera(url, max_pixels), analyst)
        except LineamentError as error:
            if socket.application_state is WebSocketState.CONNECTED:
                await socket.send_text(json.dumps({"error": str(error)}))
        except (WebSocketDisconnect, TimeoutError):
            pass
        finally:
            await self._release(socket, analyst)

    async def _show(self, socket: WebSocket, source: NetworkCamera, analyst: Analyst) -> None:
        loop = asyncio.get_running_loop()
        wanted = threading.Event()
        wanted.set()

        def send(text: str, jpeg: bytes) -> None:
            asyncio.run_coroutine_threadsafe(_send(socket, text, jpeg), loop).result(IDLE_S)

        # started first, to notice a page that leaves while the camera is opening
        listener = asyncio.create_task(_listen(socket, analyst, wanted, source))
        try:
            ended = await loop.run_in_executor(
                self._waiters, _watch, source, analyst, wanted, send, self._cfg.limits.camera_s
            )
            if not listener.done():
                await socket.send_text(json.dumps({"ended": ended}))
        finally:
            listener.cancel()
            source.close()

    async def _admitted(self, socket: WebSocket) -> bool:
        """Whether the view may start; if not, tells the page why and closes the socket."""
        await socket.accept()
        if not self._admission.redeem(socket.query_params.get("ticket", "")):
            await socket.close(_REFUSED, "reload the page")
            return False
        try:
            self._admission.enter()
        except LineamentError as error:
            await socket.send_text(json.dumps({"error": str(error)}))
            await socket.close(_FULL, "full")
            return False
        return True

    async def _release(self, socket: WebSocket, analyst: Analyst) -> None:
        self._admission.leave()
        analyst.close()
        if WebSocketState.DISCONNECTED not in (socket.application_state, socket.client_state):
            await socket.close()


def _analysed(analyst: Analyst, data: bytes, index: int, time_s: float) -> str:
    """Analyses a webcam's JPEG; returns its faces as JSON."""
    began_s = time.monotonic()
    bgr = decode_frame(data)
    decode_ms = (time.monotonic() - began_s) * 1e3
    result = analyst(Frame(bgr, "webcam", index, time_s, began_s))
    ms = {"decode": decode_ms, **result.ms, "server": (time.monotonic() - began_s) * 1e3}
    return json.dumps(result_json(replace(result, ms=ms), analyst.settings.schema))


def _watch(
    source: NetworkCamera,
    analyst: Analyst,
    wanted: threading.Event,
    send: Callable[[str, bytes], None],
    seconds: float,
) -> str:
    """Shows a camera until it ends, is closed or exceeds its time; returns which. Runs in its own thread.

    wanted: set when the page requests a frame; until then newer frames replace older ones.
    """
    with Pipeline(source, analyst) as results:
        frames, ends_s = iter(results), time.monotonic() + seconds
        while not source.closed:
            if time.monotonic() > ends_s:
                return f"stopped after {seconds / 60:g} minutes; start it again to continue"
            if not wanted.wait(0.5):
                continue
            wanted.clear()
            result = next(frames, None)
            if result is None:
                break
            send(*_encoded(result, analyst.settings.schema, results.dropped))
    return "the stream ended"


def _encoded(result: Result, schema: str, dropped: int) -> tuple[str, bytes]:
    """A result as JSON and JPEG."""
    result = _small(result)
    ok, jpeg = cv2.imencode(".jpg", result.frame.bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not ok:
        raise LineamentError("a frame could not be encoded; restart the camera")
    age_ms = (time.monotonic() - result.frame.captured_s) * 1e3
    meta = result_json(replace(result, ms={**result.ms, "age": age_ms}), schema)
    return json.dumps({**meta, "dropped": dropped}), jpeg.tobytes()


async def _send(socket: WebSocket, text: str, jpeg: bytes) -> None:
    try:
        await socket.send_text(text)
        await socket.send_bytes(jpeg)
    except (WebSocketDisconnect, RuntimeError):
        pass  # the page has left; the listener notices too


def _small(result: Result) -> Result:
    """The result with its frame scaled down to at most _CAMERA_LONG_SIDE, points and boxes too."""
    height, width = result.frame.bgr.shape[:2]
    scale = _CAMERA_LONG_SIDE / max(height, width)
    if scale >= 1:
        return result
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    bgr = np.asarray(cv2.resize(result.frame.bgr, size, interpolation=cv2.INTER_AREA), np.uint8)
    tracks = tuple(
        replace(
            track,
            face=replace(track.face, box_xyxy=(track.face.box_xyxy + 0.5) * scale - 0.5),
            points=(track.points + 0.5) * scale - 0.5,
        )
        for track in result.tracks
    )
    return replace(result, frame=replace(result.frame, bgr=bgr), tracks=tracks)


async def _listen(socket: WebSocket, analyst: Analyst, wanted: threading.Event, source: NetworkCamera) -> None:
    """Handles messages of a camera view. Closes the camera when the page leaves, times out or sends an invalid one."""
    try:
        while True:
            values = _object(await asyncio.wait_for(socket.receive_text(), IDLE_S))
            if values.pop("next", False):
                wanted.set()
            if values:
                analyst.settings = analyst.settings.changed(values)
    except (WebSocketDisconnect, TimeoutError, LineamentError):
        pass
    finally:
        source.close()
        wanted.set()


def _changed(settings: Settings, text: str) -> Settings:
    return settings.changed(_object(text))


def _object(text: str) -> dict[str, object]:
    if len(text) > 10_000:
        raise LineamentError("the message is too long; the limit is 10000 characters")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise LineamentError("the message is not a JSON object")
    return values

"""Network cameras on loopback that need nothing but Python: JPEG pictures over HTTP, for as long as anybody looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np

from lineament.landmarks.types import U8
from lineament.stream.read.sample import Sample


@contextmanager
def mjpeg_server(pictures: Sequence[U8], fps: float = 10.0) -> Iterator[str]:
    """The address of a camera that shows the pictures forth and back. Any path is the same camera."""
    jpegs = [cv2.imencode(".jpg", bgr)[1].tobytes() for bgr in pictures]
    around = [*jpegs, *jpegs[-2:0:-1]]
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=cut")
            self.end_headers()
            began_s, sent = time.monotonic(), 0
            while not ended.wait(max(0.0, began_s + sent / fps - time.monotonic())):
                # by the clock, so that whoever comes back finds the camera further on, as it would a real one
                jpeg = around[int(time.monotonic() * fps) % len(around)]
                head = f"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                try:
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
                except OSError:  # who looked has hung up
                    return
                sent += 1

        def log_message(self, format: str, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="mjpeg")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            ended.set()
            server.shutdown()
            thread.join()


def turning_head(size_hw: tuple[int, int] = (480, 640), fps: float = 10.0) -> list[U8]:
    """The part of the sample in which the face stays near, so that a tracker that comes back always finds it again."""
    sample = Sample(size_hw)
    return [np.ascontiguousarray(sample.render(round(i * sample.fps / fps))) for i in range(round(2 * fps))]

"""From a camera, stream or file to landmarks on every face: source, detect, track, draw, sink."""

import os

MAX_PIXELS = 100_000_000
"""a larger picture or frame is refused undecoded: it would take more than 300 MB"""

# OpenCV reads it when it is first imported: it holds also where a header tells others another number
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))

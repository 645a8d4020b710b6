"""From a camera, stream or file to landmarks on every face: source, detect, track, draw, sink."""

import os

# OpenCV reads it when it is first imported: the most pixels of a picture, should a header tell others another number
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(100_000_000))

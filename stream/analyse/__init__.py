"""From a frame to the faces in it: detecting, tracking, smoothing, batching."""

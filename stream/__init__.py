"""From a camera, stream or file to landmarks on every face: source, detect, track, draw, sink."""

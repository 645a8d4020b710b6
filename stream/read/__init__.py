"""Frames: cameras, streams, files, pictures and the sample; reconnecting to what is lost."""

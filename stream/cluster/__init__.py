"""Cameras and models spread over the machines of a Ray cluster."""

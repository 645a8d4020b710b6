"""A source's way from its first frame to its last output, for one and for several."""

"""The demo as a Gradio Space: two cores for everyone, so the limits are lower. docs/demo.md tells how to push it."""

import os
import sys

from lineament.demo.__main__ import main

PORT = os.environ.get("GRADIO_SERVER_PORT", "7860")
LIMITS = "--visitors 4 --upload-mb 50 --clip-s 60 --clip-frames 1800 --waiting 8 --store-mb 1000"

if __name__ == "__main__":
    sys.exit(main(["--host", "0.0.0.0", "--port", PORT, *LIMITS.split()]))

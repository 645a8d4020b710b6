"""The browser demo: pictures, clips, webcams and network cameras, through the same pipeline as the command line."""

import os

# both would report usage to their vendors; nothing about a visit may leave this machine
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

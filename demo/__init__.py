"""The demo in the browser: pictures, clips, webcams and network cameras, through the command line's own pipeline."""

import os

# nothing about a visit may leave this machine, and these two would tell their makers that they run
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

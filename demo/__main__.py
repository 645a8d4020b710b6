"""Command line of the demo.

python -m demo
python -m demo --share --auth name:password
"""

from __future__ import annotations

import logging
import signal
import sys
import threading

import cv2
import tyro

from lineament.demo.config import DemoConfig
from lineament.landmarks.command import ends_in_a_line, program

log = logging.getLogger("lineament")


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 stopped by the user, 1 failed, 2 wrong arguments."""
    # crops are too small to parallelise, and OpenCV's spinning threads would take cores from the models
    cv2.setNumThreads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    run(tyro.cli(DemoConfig, args=args, prog=program("demo", "demo")))
    return 0


def run(cfg: DemoConfig) -> None:
    """Serves until Ctrl-C or SIGTERM."""
    from lineament.demo.server import serving

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    if cfg.public:
        log.warning(_warning(cfg))
    if cfg.share:
        log.info("requesting a public link")
    with serving(cfg) as address:
        if address.public:
            print(f"public link, valid for up to a week: {address.public}", flush=True)
        elif cfg.share:
            log.warning(
                "could not get a public link; check the internet connection. The demo is served on this machine only"
            )
        print(f"open {address.local}", flush=True)
        while not stopped.wait(1.0):
            pass


def _warning(cfg: DemoConfig) -> str:
    """What others can do, as notes for whoever starts the demo."""
    who = "everyone who has the link" if cfg.share else "everyone on the network"
    if cfg.root_path:
        who = f"everyone who can reach {cfg.root_path}"
    lines = [
        f"{who} can use this demo, its models and this machine's CPU, but cannot read its other files",
        "a password is required" if cfg.login else "no password is required; --auth name:password sets one",
    ]
    if cfg.share:
        lines.append("traffic passes through Gradio's relay, which can read it")
    if not cfg.camera_tab:
        lines.append(
            "the Camera tab is disabled, because anyone could make this machine open addresses; --auth enables it"
        )
    else:
        lines.append("logged-in visitors can make this machine connect to any camera address that it can reach")
    return "\n".join(f"note: {line}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())

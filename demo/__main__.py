"""Command line: the web demo.

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
    """Returns the exit code: 0 stopped by the user, 1 failed, 2 wrong arguments."""
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
        log.info("creating a public link")
    with serving(cfg) as address:
        if address.public:
            print(f"public link, valid for at most a week: {address.public}", flush=True)
        elif cfg.share:
            log.warning("could not create a public link (no internet?); the demo is served on this machine only")
        print(f"open {address.local}", flush=True)
        while not stopped.wait(1.0):
            pass


def _warning(cfg: DemoConfig) -> str:
    """What others can do."""
    who = "anyone with the link" if cfg.share else "anyone on the network"
    lines = [
        f"{who} can use this demo, its models and this machine's processor, but no other files on it",
        "a login is required" if cfg.login else "no login is required; --auth name:password requires one",
    ]
    if cfg.share:
        lines.append("traffic passes through Gradio's relay, which can read it")
    if cfg.camera_tab:
        lines.append("whoever logs in can make this machine connect to any camera address, also in its own network")
    else:
        lines.append("the Camera tab is off, because others could make this machine open addresses; --auth enables it")
    return "\n".join(f"note: {line}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())

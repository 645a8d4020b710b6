"""What the demo is told at its start, and how much it takes from one visitor."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from lineament import engines
from lineament.landmarks.types import LineamentError


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for visitors. A request above one is refused with a message that names it."""

    upload_mb: int = 100
    """Megabytes of an uploaded file."""
    picture_megapixels: float = 40.0
    """Megapixels of an uploaded picture, checked in its header before it is decoded."""
    clip_s: float = 120.0
    """Seconds of an uploaded clip."""
    clip_megapixels: float = 9.0
    """Megapixels of a frame of a clip or a network camera; 4K passes. Larger frames are skipped undecoded."""
    clip_frames: int = 7200
    """Frames of a clip: two minutes at 60 fps. Also stops a clip whose header understates its length."""
    visitors: int = 8
    """Concurrent live views, webcams and network cameras together."""
    camera_s: float = 600.0
    """Seconds after which a network camera has to be started again."""
    waiting: int = 16
    """Jobs that may wait in the queue."""
    store_mb: int = 4000
    """Megabytes of all visitors' files together; above it, uploads are refused until files are deleted."""
    keep_s: int = 900
    """Seconds after which an unused file is deleted; files of a closed tab are deleted at once."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise LineamentError(f"{name} is {getattr(self, name)}, expected a number above 0")


@dataclass(frozen=True)
class DemoConfig:
    """Web demo: live webcam, clips, pictures, network cameras, two models side by side."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is reachable from the whole network."""
    port: int | None = None
    """Port to listen on; by default the first free one from 7860 on."""
    share: bool = False
    """Create a public link, valid for a week. Anyone with the link can use the demo on this machine."""
    auth: Annotated[str | None, tyro.conf.arg(metavar="USER:PASSWORD")] = None
    """Require this login. Set it in the environment variable LINEAMENT_AUTH to keep it out of `ps`."""
    model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH"), tyro.conf.UseAppendAction] = ()
    """A model file to offer beside the models that ship, or the name of one of those; can be repeated. The last one is
    selected at the start."""
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise LineamentError(f"port is {self.port}, expected 1 to 65535")
        for where, auth in (("--auth", self.auth), ("LINEAMENT_AUTH", os.environ.get("LINEAMENT_AUTH"))):
            if auth is not None and not all(auth.partition(":")):
                raise LineamentError(f"{where} lacks a name or a password; use the form name:password")
        for path in self.model:
            if path not in engines.MODELS and not os.path.isfile(os.path.expanduser(path)):
                raise LineamentError(f"--model {path}: no such file; give a .onnx, .engine or .safetensors")

    @property
    def login(self) -> tuple[str, str] | None:
        """Name and password, if a login is required."""
        name, _, password = (self.auth or os.environ.get("LINEAMENT_AUTH", "")).partition(":")
        return (name, password) if name else None

    @property
    def public(self) -> bool:
        """Whether the demo can be reached from other machines."""
        return self.share or not is_loopback(self.host)

    @property
    def camera_tab(self) -> bool:
        """Whether visitors may open network cameras, which this machine then connects to: only trusted ones may."""
        return self.login is not None or not self.public


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

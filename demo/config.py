"""What the demo is told at its start, and how much it takes from one visitor."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from lineament import engines
from lineament.landmarks.types import LineamentError
from lineament.stream.write.network import is_loopback


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a visitor may ask for; more is refused with the limit named."""

    upload_mb: int = 100
    """Megabytes of an uploaded file."""
    picture_megapixels: float = 40.0
    """Pixels of an uploaded picture, in millions; a larger one is refused by its header, undecoded."""
    clip_s: float = 120.0
    """Seconds of an uploaded clip."""
    clip_megapixels: float = 9.0
    """Pixels of a frame of a clip or a network camera, in millions: 4K passes. Larger ones are left out, undecoded."""
    clip_frames: int = 7200
    """Frames of a clip: two minutes at 60 a second. It also ends a clip that lies about its length."""
    visitors: int = 8
    """Live views at a time, webcam and network cameras together."""
    camera_s: float = 600.0
    """Seconds that a network camera is shown before it has to be started again."""
    waiting: int = 16
    """Jobs that may wait for their turn."""
    store_mb: int = 4000
    """Megabytes of all visitors' files together; when they are reached, uploads are refused until some are deleted."""
    keep_s: int = 900
    """Seconds after which a file that nobody came back for is deleted; those of a closed tab go at once."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise LineamentError(f"{name} is {getattr(self, name)}, wanted a number above 0")


@dataclass(frozen=True)
class DemoConfig:
    """Opens the demo in a browser: live webcam, clips, pictures, network cameras, two models side by side."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets the whole network in."""
    port: int | None = None
    """Port to listen on; by default the first free one from 7860."""
    share: bool = False
    """Ask for a public link, good for a week. Everybody who has it can use this machine's demo."""
    auth: Annotated[str | None, tyro.conf.arg(metavar="USER:PASSWORD")] = None
    """Let in only who knows these. The environment variable LINEAMENT_AUTH sets them unseen by `ps`."""
    model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH"), tyro.conf.UseAppendAction] = ()
    """A model file to offer beside the models that ship, or the name of one of those; may be given several times. The
    demo begins with the last."""
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise LineamentError(f"port is {self.port}, wanted 1 to 65535")
        for where, auth in (("--auth", self.auth), ("LINEAMENT_AUTH", os.environ.get("LINEAMENT_AUTH"))):
            if auth is not None and not all(auth.partition(":")):
                raise LineamentError(f"{where} lacks a name or a password; write name:password")
        for path in self.model:
            if path not in engines.MODELS and not os.path.isfile(os.path.expanduser(path)):
                raise LineamentError(f"--model {path}: no such file; give a .onnx, .engine or .safetensors")

    @property
    def login(self) -> tuple[str, str] | None:
        """Name and password, if they are asked for."""
        name, _, password = (self.auth or os.environ.get("LINEAMENT_AUTH", "")).partition(":")
        return (name, password) if name else None

    @property
    def public(self) -> bool:
        """Whether the demo can be reached from other machines."""
        return self.share or not is_loopback(self.host)

    @property
    def camera_tab(self) -> bool:
        """Whether visitors may open network cameras. This machine connects to them, so strangers may not."""
        return self.login is not None or not self.public

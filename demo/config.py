"""Configuration of the demo, and the limits per visitor."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

import tyro

from lineament import engines
from lineament.landmarks.types import LineamentError
from lineament.stream.write.network import is_loopback


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on visitors; the error for exceeding one names it."""

    upload_mb: int = 100
    """Largest upload, MB."""
    picture_megapixels: float = 40.0
    """Largest picture, in millions of pixels; checked in the header, before decoding."""
    clip_s: float = 120.0
    """Longest clip, seconds."""
    clip_megapixels: float = 9.0
    """Largest frame of a clip or network camera, in millions of pixels; 4K fits. Larger ones are skipped undecoded."""
    clip_frames: int = 7200
    """Most frames of a clip: two minutes at 60 fps. Also stops a clip whose header understates its length."""
    visitors: int = 8
    """Live views at a time, webcams and network cameras together."""
    camera_s: float = 600.0
    """Seconds after which a network camera view stops; the visitor can start it again."""
    waiting: int = 16
    """Most jobs in the queue."""
    store_mb: int = 4000
    """Most disk space for all visitors' files, MB; when it is full, uploads are refused until files are deleted."""
    keep_s: int = 900
    """Seconds without use after which a visitor's files are deleted; closing the page deletes them at once."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise LineamentError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class DemoConfig:
    """Serves the browser demo: live webcam, clips, pictures, network cameras, two models side by side."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 serves the whole network."""
    port: int | None = None
    """Port to listen on; the default is the first free one from 7860."""
    share: bool = False
    """Request a public link, valid for a week. Everyone who has it can use the demo. Disables the Camera tab unless
    --auth is given."""
    auth: Annotated[str | None, tyro.conf.arg(metavar="USER:PASSWORD")] = None
    """Require this login. The environment variable LINEAMENT_AUTH sets it without showing it in `ps`."""
    root_path: Annotated[str, tyro.conf.arg(metavar="PATH|URL")] = ""
    """Where a reverse proxy serves the demo: https://demo.example/faces, or /faces. Its visitors are strangers, so this
    disables the Camera tab unless --auth is given."""
    model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH"), tyro.conf.UseAppendAction] = ()
    """A model file to offer beside the built-in models, or the name of one of those; can be repeated. The last one is
    selected at start."""
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise LineamentError(f"port must be 1 to 65535, got {self.port}")
        for where, auth in (("--auth", self.auth), ("LINEAMENT_AUTH", os.environ.get("LINEAMENT_AUTH"))):
            if auth is not None and not all(auth.partition(":")):
                raise LineamentError(f"{where} must be name:password; the name or the password is missing")
        if self.root_path and not re.match(r"/(?!/)|https?://[^/]", self.root_path):
            raise LineamentError(
                f"--root-path must be a path or an address, got {self.root_path!r}; "
                "give /faces or https://demo.example/faces"
            )
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
        return self.share or bool(self.root_path) or not is_loopback(self.host)

    @property
    def own_host(self) -> str | None:
        """The host, with port if any, of the address that visitors see, if it is configured."""
        return urlsplit(self.root_path).netloc.lower() or None

    @property
    def camera_tab(self) -> bool:
        """Whether visitors may open network cameras: this machine connects to them, so strangers may not."""
        return self.login is not None or not self.public

"""Spec: a source as the user names it, and what of it a log may show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

PAGE = "#page="
"""between the path of a file and the number of a page, in the source of a frame"""


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """How a source is read."""

    stream: int | None = None
    """Read this one of several video streams, counted from 0. The default is the largest; the log lists them."""
    poll_s: float | None = None
    """Fetch a picture at an http:// or https:// address, such as a camera's snapshot, every so many seconds, as a live
    source."""

    def __post_init__(self) -> None:
        if self.stream is not None and self.stream < 0:
            raise ValueError(f"stream must be 0 or more, got {self.stream}")
        if self.poll_s is not None and not 0.01 <= self.poll_s <= 86400:
            raise ValueError(f"poll_s must be 0.01 to 86400 seconds, got {self.poll_s}")


def again(spec: str) -> str:
    """The spec to reopen a lost source: an "auto" that chose a camera must not fall back to the sample."""
    return "0" if spec in ("", "auto") else spec


def without_file_scheme(spec: str) -> str:
    """The path of a file:// URL; any other spec as it is."""
    return unquote(re.sub(r"^file://[^/]*|[?#].*$", "", spec)) if spec.startswith("file://") else spec


def without_page(source: str) -> str:
    """The path of a page's file; any other source as it is."""
    return re.sub(rf"{PAGE}\d+$", "", source)


def redacted(text: str) -> str:
    """text without the user names, passwords and tokens of its URLs. When in doubt, it hides too much."""
    text = re.sub(r"://[^\s/?#:]*:\S*@", "://***@", text)
    text = re.sub(r"://[^\s/?#]*@", "://***@", text)
    secret = r"((?:pas|pwd|pw|usr|user|login|token|key|secret|auth|sig|cred)[^=/?&\s]*=)[^&\s]*"
    return re.sub(secret, r"\1***", text, flags=re.IGNORECASE)


def redacted_spec(spec: str) -> str:
    """A spec without its passwords, which may contain spaces; redacted takes any text and ends a password at one."""
    return redacted(spec.replace(" ", "%20") if "://" in spec else spec)

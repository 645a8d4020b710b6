"""Spec: a source as the user names it, and what of it a log may show."""

from __future__ import annotations

import re
from urllib.parse import unquote

PAGE = "#page="
"""between the path of a file and the number of a page, in the source of a frame"""


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

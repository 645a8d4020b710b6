"""Spec: what a user calls a source, and how much of it a log may show."""

from __future__ import annotations

import re
from urllib.parse import unquote


def again(spec: str) -> str:
    """What to open when the source of a spec was lost: an "auto" that chose a camera shall not take the sample then."""
    return "0" if spec in ("", "auto") else spec


def without_file_scheme(spec: str) -> str:
    """The path of a file:// URL; any other spec as it is."""
    return unquote(re.sub(r"^file://[^/]*|[?#].*$", "", spec)) if spec.startswith("file://") else spec


def redacted(text: str) -> str:
    """text without the user names, passwords and tokens of the URLs in it. When in doubt it hides too much."""
    text = re.sub(r"://[^\s/?#:]*:\S*@", "://***@", text)
    text = re.sub(r"://[^\s/?#]*@", "://***@", text)
    secret = r"((?:pas|pwd|pw|usr|user|login|token|key|secret|auth|sig|cred)[^=/?&\s]*=)[^&\s]*"
    return re.sub(secret, r"\1***", text, flags=re.IGNORECASE)


def redacted_spec(spec: str) -> str:
    """A whole spec as a log may show it. In redacted, which takes any text, a password would end at a space."""
    return redacted(spec.replace(" ", "%20") if "://" in spec else spec)

"""A folder: which of its files are pictures, and what becomes of the others."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lineament.landmarks.types import LineamentError
from lineament.stream.read.image import IMAGE_SUFFIXES, kind_of

_NAMED = 20
"""most files of a kind that a message names"""
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})


class Folder:
    """The visible files of a folder, without those of folders in it. As text: what was left out, in one line."""

    def __init__(self, path: Path) -> None:
        """Raises LineamentError if it contains no picture."""
        self._path = path
        try:
            entries = sorted((entry for entry in path.iterdir() if _visible(entry)), key=_natural)
        except OSError as error:
            raise LineamentError(f"cannot read {path}: {error.strerror or error}; check its permissions") from None
        files = [entry for entry in entries if not os.path.isdir(entry)]
        self._subfolders = len(entries) - len(files)
        self._files = len(files)
        self._skipped: dict[Path, str] = {}
        self.pictures: list[Path] = []
        """by name or content, in natural order"""
        self.in_part: dict[Path, str] = {}
        """what is left out of a picture that was read"""
        for file in files:
            named = file.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(file)
            kind = "picture" if named else kind_of(file)  # opening every picture twice would be slow
            if kind in ("picture", "animation"):
                self.pictures.append(file)
            else:
                self.skip(file, "a video; give it as --source" if kind == "video" else "not a picture")
        if not self.pictures:
            wanted = ", ".join(sorted(IMAGE_SUFFIXES))
            raise LineamentError(f"{path} is a folder without pictures; expected some of {wanted}{self._others('; ')}")

    @property
    def complete(self) -> bool:
        """Whether nothing was left out."""
        return not (self._skipped or self.in_part or self._subfolders)

    def skip(self, file: Path, why: str) -> None:
        self._skipped[file] = why

    def __str__(self) -> str:
        read = self._files - len(self._skipped)
        return f"read {read} of {self._files} files in {self._path}{self._others('; ')}"

    def _others(self, before: str) -> str:
        parts = []
        if self._skipped:
            parts.append(f"skipped {_named(self._skipped)}")
        if self.in_part:
            parts.append(f"read in part: {_named(self.in_part)}")
        if self._subfolders:
            parts.append(f"{self._subfolders} subfolder{'s' * (self._subfolders > 1)} not read")
        return "".join(before + part for part in parts)


def _named(files: dict[Path, str]) -> str:
    names = [f"{file.name} ({why})" for file, why in files.items()]
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join(names[:_NAMED] + more)


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower() not in _SYSTEM_FILES


def _natural(path: Path) -> list[int | str]:
    """Sorts 2 before 10."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", path.name)]

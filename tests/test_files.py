"""A file that is replaced is never seen half."""

from __future__ import annotations

from pathlib import Path

import pytest

from lineament.landmarks.files import replaced


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.json"
    for text in ("first", "second"):
        with replaced(path) as part:
            part.write_text(text[:3])
            assert not path.exists() if text == "first" else path.read_text() == "first"
            part.write_text(text)
        assert path.read_text() == text and list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replaced(path) as part:
        part.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

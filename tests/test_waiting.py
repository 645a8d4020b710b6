"""A failing test ends the process that it started."""

from __future__ import annotations

import sys

import pytest

from tests.waiting import started


def test_a_process_ends_with_its_block_even_if_the_block_fails() -> None:
    with pytest.raises(AssertionError), started([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        assert process.poll() is not None
    assert process.poll() is not None

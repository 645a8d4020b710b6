"""Every command line: what fails is told in one line, with an exit code that is not 0."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.types import LineamentError

LONG = "a" * 300
"""no file system takes a name of this length, and many a look-up raises instead of saying that nothing is there"""


@pytest.mark.parametrize(
    ("failure", "code", "told"),
    [
        (LineamentError("no model at x; check the spelling"), 1, "no model at x; check the spelling"),
        (ValueError("n must be at least 1, got 0"), 1, "n must be at least 1, got 0"),
        (OSError(errno.ENOSPC, "No space left on device", "out/a.csv"), 1, "out/a.csv: no space left on device; check"),
        (OSError("the picture is cut off"), 1, "the picture is cut off; check"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_failure_is_one_line(
    failure: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @ends_in_a_line
    def main() -> int:
        raise failure

    assert main() == code
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == (1 if told else 0) and err.startswith("error: " * bool(told) + told)


def test_what_goes_well_and_what_is_a_bug_pass() -> None:
    @ends_in_a_line
    def main(divisor: int) -> int:
        """Divides."""
        return 3 // divisor

    assert main(1) == 3 and main.__doc__ == "Divides."
    with pytest.raises(ZeroDivisionError):
        main(0)


@pytest.mark.parametrize("name", [f"/tmp/{LONG}", "/dev/null/x"])
@pytest.mark.parametrize(
    "line",
    [
        "stream --no-window --source {}",
        "stream --no-window --source sample --frames 1 --model {}",
        "stream --no-window --source sample --frames 1 --out {}",
        "stream --no-window --source sample --frames 1 --out {}.mp4",
        "stream --no-window --source sample --frames 1 --out {}.m3u8",
        "stream --no-window --source sample --frames 1 --out {}.jpg",
        "stream --no-window --source sample --frames 1 --jsonl {}.jsonl",
        "stream --no-window --source sample --source sample --frames 1 --tiles {}.mp4",
        "stream --no-window --cameras {}",
        "stream.cluster.driver --cameras {}",
        "stream.label {} --out {}.jsonl --teacher student",
        "stream.label docs --out {}.jsonl --teacher {}",
        "stream.label docs --out {}.jsonl --teacher student",
        "engines.build --model {}",
        "engines.build --model {}.onnx",
        "engines.bench {}",
        "engines.compare {}",
        "engines.import_onnx {}",
        "train --data {}",
        "train.data check {}",
        "train.evaluate {} --data {}",
        "train.augment preview --data {} --out {}.png",
        "train.suspects --data {} --out {}",
        "train.tune --data {} --out {}",
        "train.profile --data {}",
        "demo --model {}",
    ],
)
def test_a_path_that_is_none_is_no_traceback(
    line: str, name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    module, *args = line.replace("{}", name).split()
    main: Callable[[list[str]], int] = import_module(
        f"lineament.{module}" if "." in module else f"lineament.{module}.__main__"
    ).main
    assert main([*args, "--out", str(tmp_path / "out")] if module == "engines.import_onnx" else args) == 1
    said = capfd.readouterr().err + caplog.text
    assert re.search(r"error: .*[a-z]", said) and "Traceback" not in said

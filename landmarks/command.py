"""What command lines share: how they end, whole by a signal or in one line by a failure, and what they are called."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import ParamSpec

from lineament.landmarks.types import LineamentError

P = ParamSpec("P")

_ABOVE = Path(__file__).resolve().parents[1]
CHECKOUT = _ABOVE if (_ABOVE / "pyproject.toml").is_file() else None
"""the folder of the repository; None where the package is installed"""


def program(command: str, module: str) -> str:
    """What help calls a command: `lineament stream` where the package is installed, else `python -m stream`."""
    return f"lineament {command}" if Path(sys.argv[0]).stem == "lineament" else f"python -m {module}"


def install(extra: str) -> str:
    """The command that brings what an extra of the package needs: by the pinned list of a checkout, or by its name."""
    return f"`pip install -r requirements-{extra}.txt`" if CHECKOUT else install_extra(extra)


def install_extra(extra: str) -> str:
    """The command that brings an extra of the package by its name, wherever the package is."""
    return f"`pip install 'lineament[{extra}]'`"


def renamed(args: list[str] | None, names: Mapping[str, str]) -> list[str]:
    """args, or what the process was given, with options of a former release under their names of today; says so."""
    given = sys.argv[1:] if args is None else args
    options = [re.sub(r"^(--[\w-]+)", lambda option: names.get(option[1], option[1]), arg) for arg in given]
    for old in {arg.partition("=")[0] for arg in given} & names.keys():
        print(f"{old} is called {names[old]} now; the old name goes with the next release", file=sys.stderr)
    return options


@contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call stop, so that what is under way ends whole. A second Ctrl-C interrupts.

    Outside of the main thread it does nothing: whoever started the thread must stop it.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(failure: str) -> None:
    print(f"error: {failure}", file=sys.stderr)


def ends_in_a_line(main: Callable[P, int], tell: Callable[[str], None] = _print) -> Callable[P, int]:
    """main, returning 1 after telling what failed, and 130 after a Ctrl-C.

    tell: how the user hears of it. An OSError here is one that nobody foresaw: a path that is none, a full disk.
    """

    @wraps(main)
    def ended(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (LineamentError, ValueError) as error:
            tell(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            tell(f"{where}{(error.strerror or str(error)).lower()}; check the path, its rights and the space left")
        except KeyboardInterrupt:
            return 130
        return 1

    return ended

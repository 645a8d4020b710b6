"""Shared by the command lines: names of commands, signal handling, and failures in one line."""

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
"""the folder of the repository; None if the package is installed"""


def program(command: str, module: str) -> str:
    """The name of a command in its help: `lineament stream` if run as such, else `python -m stream`."""
    return f"lineament {command}" if Path(sys.argv[0]).stem == "lineament" else f"python -m {module}"


def install(extra: str, index_url: str = "") -> str:
    """The command that installs an extra: from the pinned requirements in a checkout, which name index_url themselves,
    else by its name."""
    return f"`pip install -r requirements-{extra}.txt`" if CHECKOUT else install_extra(extra, index_url)


def install_extra(extra: str, index_url: str = "") -> str:
    """The command that installs an extra by its name. index_url: of packages that PyPI lacks."""
    return f"`pip install 'lineament[{extra}]'{f' --extra-index-url {index_url}' * bool(index_url)}`"


def renamed(args: list[str] | None, names: Mapping[str, str]) -> list[str]:
    """args, by default sys.argv, with options of the last release renamed, which is reported on stderr."""
    given = sys.argv[1:] if args is None else args
    options = [re.sub(r"^(--[\w-]+)", lambda option: names.get(option[1], option[1]), arg) for arg in given]
    for old in {arg.partition("=")[0] for arg in given} & names.keys():
        print(f"{old} is now {names[old]}; the old name will be removed in the next release", file=sys.stderr)
    return options


@contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call stop, for a clean shutdown. A second Ctrl-C interrupts.

    Outside the main thread it does nothing: whoever started the thread must stop it.
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
    """Decorates main to report a failure and return 1, and to return 130 after Ctrl-C.

    tell: reports the failure to the user. An OSError here is one not handled elsewhere, such as a full disk.
    """

    @wraps(main)
    def ended(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (LineamentError, ValueError) as error:
            tell(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            tell(f"{where}{(error.strerror or str(error)).lower()}; check the path, permissions and free space")
        except KeyboardInterrupt:
            return 130
        return 1

    return ended

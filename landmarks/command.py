"""How a command line ends when it fails: in one line that the user can act on, and an exit code that is not 0."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from lineament.landmarks.types import LineamentError

P = ParamSpec("P")


def program(command: str, module: str) -> str:
    """What help calls a command: `lineament stream` where the package is installed, else `python -m stream`."""
    return f"lineament {command}" if Path(sys.argv[0]).stem == "lineament" else f"python -m {module}"


def install(extra: str) -> str:
    """The command that brings what an extra of the package needs: by the pinned list of a checkout, or by its name."""
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f"`pip install -r requirements-{extra}.txt`"
    return f"`pip install 'lineament[{extra}]'`"


def renamed(args: list[str] | None, names: Mapping[str, str]) -> list[str]:
    """args, or what the process was given, with options of a former release under their names of today; says so."""
    given = sys.argv[1:] if args is None else args
    options = [re.sub(r"^(--[\w-]+)", lambda option: names.get(option[1], option[1]), arg) for arg in given]
    for old in {arg.partition("=")[0] for arg in given} & names.keys():
        print(f"{old} is called {names[old]} now; the old name goes with the next release", file=sys.stderr)
    return options


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

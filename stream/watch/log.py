"""Log: messages on standard error, as text for people or as JSON lines for a log collector.

set_up("json")
log.warning("lost door; trying again", extra={"source": "door", "event": "lost"})
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from lineament.stream.read.spec import redacted

Kind = Literal["text", "json"]

log = logging.getLogger(__name__)

_PLAIN = frozenset([*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"])
"""attributes of every record; all others come from `extra`"""


def set_up(kind: Kind) -> None:
    """Call once per process. json: warnings and uncaught exceptions become lines, too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if kind == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if kind == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_fault
        threading.excepthook = _log_fault_of_thread


class TextLines(logging.Formatter):
    """The message and, if any, the traceback, without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class JsonLines(logging.Formatter):
    """time (UTC), level, logger, message, the `extra` fields, and a traceback as `exception`, without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, object] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _PLAIN},
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: _plain(value) for name, value in entry.items()}, default=str)


def _plain(value: object) -> object:
    """value as JSON: without passwords, null for a number that is not finite."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, int | float) else redacted(str(value))


def _log_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("internal error: %s", error, exc_info=(kind, error, trace), extra={"event": "fault"})


def _log_fault_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log_fault(args.exc_type, args.exc_value, args.exc_traceback)

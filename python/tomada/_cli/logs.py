"""How ``tomada serve`` logs: for people, as text with time and level, or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

# Moves to the start of the line and erases it, so that no status line remains before the text.
ERASE = "\r\x1b[K"


class Console(logging.Formatter):
    """Lines for people, which begin with the program's name."""

    def __init__(self, *, erases: bool) -> None:
        super().__init__("tomada serve: %(message)s")
        self._before = ERASE if erases else ""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return self._before + super().format(record)


class Text(logging.Formatter):
    """Lines with time, level and logger."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Format the time as in JSON."""
        del datefmt
        return _time(record)


class Json(logging.Formatter):
    """A JSON object per line, with the record's own fields, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def configure(style: str, level: str, *, erases: bool) -> None:
    """Set up logging to standard error."""
    formatters = {"json": Json, "text": Text}
    formatter = formatters[style]() if style in formatters else Console(erases=erases)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level.upper())
